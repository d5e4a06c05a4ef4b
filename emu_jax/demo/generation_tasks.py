"""Tasks whose answer is a picture, judged by the pixel reader; and what the embeddings themselves tell."""

from collections.abc import Sequence
from itertools import product

import jax.numpy as jnp
import numpy as np

from emu_jax.demo.examples import (
    OPTIONS,
    Sample,
    Settings,
    TaskResult,
    attribute_chances,
    by_attribute,
    by_split,
    pictured,
)
from emu_jax.demo.models import ImageGenerator, Reader, in_batches
from emu_jax.demo.prompts import Prompt, in_context_prompt
from emu_jax.demo.scores import Score, Scores
from emu_jax.demo.world.classifier import ReadScene, agreement, read_scene
from emu_jax.demo.world.grammar import ATTRIBUTES, caption, name, where
from emu_jax.demo.world.rendering import NO_JITTER, render
from emu_jax.demo.world.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Object, Scene, Split
from emu_jax.demo.world.stories import sample_blend, sample_in_context
from emu_jax.losses import effective_rank, embedding_variance, mean_pairwise_cosine

_BLENDS = 8
_BOTH_CHANCE = 1 / (len(OPTIONS["color"]) * len(OPTIONS["shape"]))


def regress(emu: Reader, prompts: Sequence[Prompt], settings: Settings) -> np.ndarray:
    """The embeddings of the picture that follows each prompt, float32 [n, N, D]."""
    return in_batches(emu.generate_embeddings_batch, prompts, size=settings.batch_size).astype(np.float32)


def embed(emu: Reader, images: Sequence[np.ndarray], settings: Settings) -> np.ndarray:
    """The embeddings of pictures, float32 [n, N, D]."""
    return in_batches(emu.visual_embeddings, images, size=settings.batch_size).astype(np.float32)


def text_to_image(emu: Reader, painter: ImageGenerator | None, settings: Settings) -> TaskResult:
    """Captions of one object become embeddings, and these pictures.

    `text_to_embedding_...` judges the embeddings without a decoder: by the scene whose picture lies nearest to them.
    """
    rng = settings.rng("text to image")
    examples = pictured(rng, settings, count=settings.num_scenes, num_objects=1)
    scenes = [example.scene for example in examples]
    prompts = [caption(scene, rng) for scene in scenes]
    embeddings = regress(emu, [[prompt] for prompt in prompts], settings)
    nearest = nearest_scenes(emu, embeddings, settings)
    scores = _judged("text_to_embedding", [_agree(found, scene) for found, scene in zip(nearest, scenes, strict=True)],
                     scenes)  # fmt: skip
    if painter is None:
        return TaskResult(scores)
    scenes, prompts = scenes[: settings.num_images], prompts[: settings.num_images]
    made = painter.paint(embeddings[: settings.num_images])
    judged, samples = _judge(made, scenes, prompts=prompts, shown=[()] * len(made), settings=settings)
    return TaskResult(scores | _judged("text_to_image", judged, scenes), {"text_to_image": samples})


def autoencoding(emu: Reader, painter: ImageGenerator | None, settings: Settings) -> TaskResult:
    """Pictures through the encoder and the decoder: what text to image loses to the decoder alone."""
    if painter is None:
        return TaskResult({})
    rng = settings.rng("autoencoding")
    examples = pictured(rng, settings, count=settings.num_images, num_objects=1)
    scenes = [example.scene for example in examples]
    made = painter.paint(embed(emu, [example.image for example in examples], settings))
    shown = [(example.image,) for example in examples]
    judged, samples = _judge(made, scenes, prompts=[""] * len(made), shown=shown, settings=settings)
    return TaskResult(_judged("autoencoding", judged, scenes), {"autoencoding": samples})


def in_context(emu: Reader, painter: ImageGenerator | None, settings: Settings) -> TaskResult:
    """The object of image 1 in the color of image 2: right when the picture shows that shape in that color."""
    rng = settings.rng("in context")
    count = settings.num_images if painter is not None else settings.num_scenes
    tasks = [sample_in_context(rng, split=Split.TEST) for _ in range(count)]
    targets = [task.target for task in tasks]
    shown = [
        tuple(render(scene, rng, size=settings.image_size) for scene in (task.first, task.second)) for task in tasks
    ]
    prompts = [in_context_prompt(task, *pair) for task, pair in zip(tasks, shown, strict=True)]
    embeddings = regress(emu, prompts, settings)
    nearest = nearest_scenes(emu, embeddings, settings)
    found = [_agree(scene, target)["color_and_shape"] for scene, target in zip(nearest, targets, strict=True)]
    scores = by_split("in_context_embedding_accuracy", found, targets, chance=_BOTH_CHANCE)
    if painter is None:
        return TaskResult(scores)
    said = [task.texts[2] for task in tasks]
    judged, samples = _judge(painter.paint(embeddings), targets, prompts=said, shown=shown, settings=settings)
    right = [row["color_and_shape"] for row in judged]
    scores |= by_split("in_context_accuracy", right, targets, chance=_BOTH_CHANCE)
    return TaskResult(scores, {"in_context": samples})


def blending(emu: Reader, painter: ImageGenerator | None, settings: Settings) -> TaskResult:
    """Two pictures, and the one that follows them: to be looked at."""
    if painter is None:
        return TaskResult({})
    rng = settings.rng("blending")
    pairs = [sample_blend(rng) for _ in range(min(_BLENDS, settings.num_samples))]
    if not pairs:
        return TaskResult({})
    shown = [tuple(render(scene, rng, size=settings.image_size) for scene in pair) for pair in pairs]
    made = painter.paint(regress(emu, [list(pair) for pair in shown], settings))
    samples = [
        Sample(pair, "", image, "", None, describe(read_scene(image))) for pair, image in zip(shown, made, strict=True)
    ]
    return TaskResult({}, {"blending": samples})


def pixel_reader(settings: Settings) -> TaskResult:
    """The judge judged: how often it reads true drawings right."""
    rng = settings.rng("pixel reader")
    examples = pictured(rng, settings, count=settings.num_scenes, num_objects=1)
    rows = [agreement(read_scene(example.image), example.scene) for example in examples]
    both = [row["color_and_shape"] for row in rows]
    scores = by_split("pixel_reader_accuracy", both, [e.scene for e in examples], chance=_BOTH_CHANCE)
    return TaskResult(scores | by_attribute("pixel_reader_attributes", rows, chances=attribute_chances()))


def embeddings(emu: Reader, settings: Settings) -> TaskResult:
    """Whether the embeddings tell pictures apart: variance, mean cosine, effective rank (see `emu_jax.losses`)."""
    examples = pictured(settings.rng("embeddings"), settings, count=settings.num_scenes)
    found = jnp.asarray(embed(emu, [example.image for example in examples], settings))
    mask = jnp.ones(len(found))
    measures = {
        "visual_embedding_variance": embedding_variance,
        "visual_embedding_cosine": mean_pairwise_cosine,
        "visual_embedding_rank": effective_rank,
    }
    return TaskResult({key: Score(float(of(found, mask=mask)), len(found)) for key, of in measures.items()})


def nearest_scenes(emu: Reader, embeddings: np.ndarray, settings: Settings) -> list[Scene]:
    """The one-object scene whose plain drawing has the nearest embeddings, each dimension at its own scale."""
    catalog = [
        Scene((Object(shape, color, size, place),), background)
        for shape, color, size, place, background in product(SHAPES, COLORS, SIZES, PLACES, BACKGROUNDS)
    ]
    rng = settings.rng("catalog")  # without jitter it decides nothing
    drawn = [render(scene, rng, size=settings.image_size, jitter=NO_JITTER) for scene in catalog]
    known = embed(emu, drawn, settings).reshape(len(catalog), -1)
    scale = 1 / (known.std(axis=0) + 1e-6)
    known, asked = known * scale, embeddings.reshape(len(embeddings), -1) * scale
    distances = np.square(known).sum(1) - 2 * asked @ known.T
    return [catalog[i] for i in distances.argmin(1)]


def describe(read: ReadScene) -> str:
    """What the pixel reader sees, in words: `"large red circle at the top left on white"`."""
    item = read.largest
    if item is None:
        return f"nothing on {read.background.value}"
    return f"{name(item)} {where(item.place)} on {read.background.value}"  # type: ignore[arg-type]


def _agree(found: Scene, scene: Scene) -> dict[str, bool]:
    right = {kind: getattr(found.object, kind) is getattr(scene.object, kind) for kind in ATTRIBUTES[:-1]}
    right["background"] = found.background is scene.background
    return right | {"color_and_shape": right["color"] and right["shape"]}


def _judge(
    made: np.ndarray,
    scenes: Sequence[Scene],
    *,
    prompts: Sequence[str],
    shown: Sequence[tuple[np.ndarray, ...]],
    settings: Settings,
) -> tuple[list[dict[str, bool]], list[Sample]]:
    read = [read_scene(image) for image in made]
    judged = [agreement(found, scene) for found, scene in zip(read, scenes, strict=True)]
    samples = [
        Sample(shown[i], prompts[i], made[i], name(scenes[i].object), judged[i]["color_and_shape"], describe(read[i]))
        for i in range(min(len(made), settings.num_samples))
    ]
    return judged, samples


def _judged(prefix: str, judged: Sequence[dict[str, bool]], scenes: Sequence[Scene]) -> Scores:
    both = by_split(
        f"{prefix}_color_and_shape", [row["color_and_shape"] for row in judged], scenes, chance=_BOTH_CHANCE
    )
    return both | by_attribute(f"{prefix}_attributes", judged, chances=attribute_chances())
