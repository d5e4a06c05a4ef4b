"""Write documents with a TFDS builder as ArrayRecord shards that TFDS and Grain read, without TensorFlow."""

import contextlib
import functools
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from emu_jax.data.prepare.beam import Runner
from emu_jax.data.records import features

# Returns numbered examples or, with a Beam runner, the PTransform that yields them.
Examples = Callable[[], Iterator[tuple[int, dict[str, Any]]] | Any]


def build_folder(examples: Examples, directory: Path, *, split: str, runner: Runner | None = None) -> Path:
    """Write all numbered `examples` (values of `records.features`) under `directory`, whose contents are removed first.

    Returns the folder with the shards, features.json and dataset_info.json.
    """
    import tensorflow_datasets as tfds  # slow to import

    shutil.rmtree(directory, ignore_errors=True)
    tfds.disable_progress_bar()
    builder = _builder_class()(data_dir=directory, file_format="array_record")
    builder.examples_of = {split: examples}
    beam_options = {"beam_runner": runner.name, "beam_options": runner.pipeline_options()} if runner else {}
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(compute_stats="skip", **beam_options))
    return Path(os.fspath(builder.data_path))


@functools.cache
def _builder_class():
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    with registered.skip_registration():  # so that TFDS does not list it with the public data sets

        class Documents(tfds.core.GeneratorBasedBuilder):
            """Interleaved text, images and videos; see emu_jax.data.records."""

            VERSION = tfds.core.Version("1.0.0")
            code_path = None  # nothing is downloaded, so there are no checksums to load
            examples_of: dict[str, Examples]

            def _info(self) -> tfds.core.DatasetInfo:
                # The loader shuffles; sorting by hash here would only cost a third pass over the data.
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features()), disable_shuffling=True
                )

            def _split_generators(self, dl_manager):
                del dl_manager
                return {split: self._generate_examples(split) for split in self.examples_of}

            def _generate_examples(self, split):
                return self.examples_of[split]()

    return Documents
