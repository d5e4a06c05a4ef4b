"""Parts that the tasks that generate images share: the predictor, the metric, and COCO's captions."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example
from emu_jax.evaluation.features import chunks, decoded
from emu_jax.evaluation.image_metrics.fid import read_statistics
from emu_jax.evaluation.metrics.frechet import FeatureStatistics, frechet_distance, frechet_interval
from emu_jax.evaluation.metrics.scores import HUNDREDFOLD, Score, Scored, mean_score
from emu_jax.evaluation.prompts import Shot
from emu_jax.evaluation.task import BatchContext, ScoreOptions
from emu_jax.generation.options import ImageOptions
from emu_jax.generation.pipeline import EmuPipeline
from emu_jax.generation.prompt import Prompt
from emu_jax.io.files import atomic_file

COCO_CAPTIONS = 30_000
_CAPTIONS = "captions_val2014.json"
_SEED = 0

# The paper's FID: guidance 5.0, the release's sampler, 256 x 256 pixels.
FID_OPTIONS = ImageOptions(guidance_scale=5.0)
FID_SIDE = 256


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedImage:
    """A prompt and the files that its images go to."""

    prompt: Prompt
    files: tuple[str, ...]
    example: Example


@dataclasses.dataclass(frozen=True)
class GenerateImages:
    """Generate images of a text, or autoencode an image, and save them as PNG files in OUT/TASK.

    Attributes:
      options: of the sampler; `seed` shifts the seeds of all batches.
      files: names of the images of an example, relative to OUT/TASK.
      side: pixels that images are resized to; None keeps the decoder's size.
      autoencode: the prompt is the example's image; its own embeddings are decoded.
      metadata: called with an example and OUT/TASK: writes what else the scorer of a benchmark expects.
    """

    options: ImageOptions
    files: Callable[[Example], tuple[str, ...]]
    side: int | None = None
    autoencode: bool = False
    metadata: Callable[[Example, Path], None] | None = None

    def describe(self) -> Mapping[str, Any]:
        sampling = dataclasses.asdict(self.options)
        return {
            "prompt": "the image" if self.autoencode else "{caption}[IMG]",
            "sampling": {**sampling, "side": self.side},
        }

    def length(self, emu: EmuPipeline, example: Example, shots: Sequence[Shot]) -> int:
        if self.autoencode:
            return 0
        return len(emu.build_prompt([example.text], open_image=True).tokens)

    def prepare(self, emu: EmuPipeline, example: Example, shots: Sequence[Shot]) -> PreparedImage:
        if self.autoencode:
            return PreparedImage(emu.build_prompt([example.media[0]]), self.files(example), example)
        return PreparedImage(emu.build_prompt([example.text], open_image=True), self.files(example), example)

    def predict(
        self, emu: EmuPipeline, prepared: Sequence[PreparedImage], *, context: BatchContext
    ) -> list[str | list[str]]:
        prompts = [one.prompt for one in prepared]
        if self.autoencode:
            embeddings = emu.visual_embeddings([prompt.images[0] for prompt in prompts])
        else:
            embeddings = emu.generate_embeddings_batch(prompts, batch_size=len(prompts))
        count = len(prepared[0].files)
        seed = (self.options.seed + 1_000_003 * context.seed) % 2**32
        options = dataclasses.asdict(dataclasses.replace(self.options, seed=seed))
        # Scores are of all images of the model: a checker would turn some of them black.
        images = emu.decode_embeddings(np.repeat(embeddings, count, axis=0), safety=False, **options)
        results: list[str | list[str]] = []
        for row, one in enumerate(prepared):
            if one not in prepared[:row]:  # the rows that fill up a batch repeat its last one
                own = [self._resized(image) for image in images[row * count : (row + 1) * count]]
                self._save(own, one, context.folder)
            results.append(one.files[0] if count == 1 else list(one.files))
        return results

    def _resized(self, image: PIL.Image.Image) -> PIL.Image.Image:
        if self.side is None or image.size == (self.side, self.side):
            return image
        return image.resize((self.side, self.side), PIL.Image.Resampling.BICUBIC)

    def _save(self, images: Sequence[PIL.Image.Image], one: PreparedImage, folder: Path) -> None:
        for image, name in zip(images, one.files, strict=True):
            with atomic_file(folder / name) as temporary:
                image.save(temporary, "PNG")
        if self.metadata is not None:
            self.metadata(one.example, folder)


def coco_captions(data: DataRoot, split: str) -> list[Example]:
    """Return 30,000 captions of COCO's val2014, one of each image, drawn with a fixed seed."""
    del split
    folder = data.folder("coco/val2014", "val2014")

    def parse(value: Any) -> list[Example]:
        captions: dict[int, list[str]] = {}
        for row in sorted(value["annotations"], key=lambda row: row["id"]):
            captions.setdefault(row["image_id"], []).append(row["caption"])
        names = {image["id"]: image["file_name"] for image in value["images"]}
        if any("train2014" in name for name in names.values()):
            raise UserError(f"{data.file(_CAPTIONS)} holds the captions of train2014, not of val2014.")
        rng = np.random.default_rng(_SEED)
        ids = rng.permutation(sorted(captions))[:COCO_CAPTIONS]
        return [
            Example(
                key=(int(i),),
                text=captions[i][rng.integers(len(captions[i]))].strip(),
                details={"image": folder / names[i]},
            )
            for i in ids.tolist()
        ]

    return data.parse(_CAPTIONS, parse)


def image_file(example: Example) -> tuple[str, ...]:
    """Name one image after its example."""
    return (f"images/{int(example.key[0]):012d}.png",)


def check_file(value: Any, example: Example) -> None:
    """Raise ValueError unless a prediction names one PNG file."""
    del example
    if not isinstance(value, str) or not value.endswith(".png"):
        raise ValueError(f"is {value!r}, not the name of a .png file")


def image_metric(
    examples: Sequence[Example], files: Sequence[str], options: ScoreOptions, *, fid: bool, texts: bool
) -> Scored | None:
    """Return FID and CLIP scores by the networks that are given; None without any.

    Args:
      fid: compute the FID to the examples' own images, or to given statistics.
      texts: compute CLIP-T, the cosine of an image with its caption.
    """
    check_reference_images(examples, options)
    scores: dict[str, Score] = {}
    protocol: dict[str, Any] = {}
    paths = [options.folder / name for name in files]
    _check_there(paths, "generated", "Repeat the evaluation in another folder, or complete it.")
    real = [example.details["image"] for example in examples]
    inception = options.networks.load_fid() if fid else None
    if inception is not None:
        given = options.networks.reference
        reference = (
            read_statistics(given)
            if given is not None
            else inception.reference(real, store=options.folder.parent / "features")
        )
        features = inception.features(decoded(paths))
        distance = frechet_distance(FeatureStatistics.of(features), reference)
        interval = frechet_interval(features, reference)
        scores["FID"] = Score(distance, len(paths), unit="Frechet distance", interval=interval)
        protocol |= {
            "inception": inception.fingerprint,
            "resize": options.networks.resize.value,
            "reference": str(given or "the images of the captions"),
        }
    clip = options.networks.load_clip()
    per_example: Sequence[float] = ()
    if clip is not None:
        generated = np.concatenate([clip.embed_images(some) for some in chunks(decoded(paths))])
        truth = np.concatenate([clip.embed_images(some) for some in chunks(decoded(real))])
        per_example = np.sum(generated * truth, axis=1).astype(np.float64).tolist()
        scores["CLIP-I"] = mean_score(per_example, scale=100, unit=HUNDREDFOLD)
        if texts:
            captions = clip.embed_texts([example.text for example in examples])
            per_example = np.sum(generated * captions, axis=1).astype(np.float64).tolist()
            scores["CLIP-T"] = mean_score(per_example, scale=100, unit=HUNDREDFOLD)
        protocol["clip"] = f"{clip.name} ({clip.fingerprint})"
    return Scored(scores, per_example, {}, protocol) if scores else None


def check_reference_images(examples: Sequence[Example], options: ScoreOptions) -> None:
    """Raise UserError if scores require real images that are not there."""
    networks = options.networks
    if networks.clip is None and (networks.inception is None or networks.reference is not None):
        return
    real = [example.details["image"] for example in examples if "image" in example.details]
    _check_there(real, "real", "Complete the data, or leave out --clip and compare with --fid-reference.")


def _check_there(paths: Sequence[Path], kind: str, advice: str) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{len(missing)} of {len(paths)} {kind} images are missing, such as {missing[0]}. {advice}")
