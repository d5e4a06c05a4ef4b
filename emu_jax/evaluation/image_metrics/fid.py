"""FID: the Frechet distance between Inception features of generated and reference images."""

import functools
import hashlib
import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from emu_jax.errors import UserError
from emu_jax.evaluation.features import decoded
from emu_jax.evaluation.image_metrics.inception import FEATURES, SIDE, Inception
from emu_jax.evaluation.image_metrics.inception_table import load_inception
from emu_jax.evaluation.image_metrics.resize import Resize, resize_for_inception
from emu_jax.evaluation.metrics.frechet import FeatureStatistics
from emu_jax.io.files import atomic_file

log = logging.getLogger(__name__)


class Fid:
    """`Fid(weights, resize)` computes features and their statistics with one network and one resize."""

    def __init__(self, weights: str | os.PathLike[str], *, resize: Resize = Resize.CLEAN, rows: int = 32) -> None:
        """Read `pt_inception-2015-12-05`; `rows` images go through it at a time.

        Raises:
          UserError: the file is not there or is another network.
        """
        self._params, self._resize, self._rows = load_inception(weights), resize, rows

    def features(self, images: Iterator[np.ndarray]) -> np.ndarray:
        """Return features `[n, 2048]` of uint8 images `[H, W, 3]`."""
        rows = [np.zeros((0, FEATURES), np.float32)]
        waiting: list[np.ndarray] = []
        for image in images:
            waiting.append(resize_for_inception(image, SIDE, self._resize))
            if len(waiting) == self._rows:
                rows.append(self._run(waiting))
                waiting = []
        if waiting:
            rows.append(self._run(waiting))
        return np.concatenate(rows)

    def statistics(self, images: Iterator[np.ndarray]) -> FeatureStatistics:
        """Return the statistics of uint8 images."""
        return FeatureStatistics.of(self.features(images))

    def reference(self, paths: Sequence[Path], *, store: Path) -> FeatureStatistics:
        """Return the statistics of reference images, from `store` if they were computed before."""
        identity = "\n".join([self.fingerprint, self._resize.value, *map(str, paths)])
        file = store / f"fid-reference-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npz"
        if file.is_file():
            return read_statistics(file)
        log.info("computing the FID statistics of %d reference images; they are stored in %s", len(paths), file)
        found = self.statistics(decoded(paths))
        with atomic_file(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, mu=found.mean, sigma=found.covariance, count=found.count)
        return found

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identify the weights."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self._params):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    def _run(self, images: Sequence[np.ndarray]) -> np.ndarray:
        filled = np.stack([*images, *[images[-1]] * (self._rows - len(images))])
        return np.asarray(_features(self._params, filled))[: len(images)]


def read_statistics(path: Path) -> FeatureStatistics:
    """Read `mu` and `sigma` from an .npz file, as FID tools write it.

    Raises:
      UserError: the file has another form.
    """
    try:
        with np.load(path) as saved:
            mean, covariance = saved["mu"].astype(np.float64), saved["sigma"].astype(np.float64)
            count = int(saved["count"]) if "count" in saved else 0
    except (OSError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} does not hold FID statistics `mu` and `sigma` ({error}).") from None
    return FeatureStatistics(mean, covariance, count)


@jax.jit
def _features(params: Any, pixels: jax.Array) -> jax.Array:
    return Inception().apply({"params": params}, pixels)
