"""Tasks whose answer is an image, graded by the rule-based classifier, and measures of the embeddings themselves."""

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
    sample_scenes,
)
from emu_jax.demo.models import EmuModel, ImageGenerator, in_batches
from emu_jax.demo.prompts import Prompt, in_context_prompt
from emu_jax.demo.scores import Score, Scores
from emu_jax.demo.world.classifier import DetectedScene, agreement, classify_scene
from emu_jax.demo.world.grammar import ATTRIBUTES, caption, name, where
from emu_jax.demo.world.rendering import NO_JITTER, render
from emu_jax.demo.world.scenes import BACKGROUNDS, COLORS, LOCATIONS, SHAPES, SIZES, Object, Scene, Split
from emu_jax.demo.world.stories import sample_blend, sample_in_context
from emu_jax.losses import effective_rank, embedding_variance, mean_pairwise_cosine

_NUM_BLENDS = 8
_COLOR_AND_SHAPE_CHANCE = 1 / (len(OPTIONS["color"]) * len(OPTIONS["shape"]))


def predict_embeddings(emu: EmuModel, prompts: Sequence[Prompt], settings: Settings) -> np.ndarray:
    """Return the predicted embeddings of the image after each prompt, float32 [n, N, D]."""
    return in_batches(emu.generate_embeddings_batch, prompts, size=settings.batch_size).astype(np.float32)


def encode_images(emu: EmuModel, images: Sequence[np.ndarray], settings: Settings) -> np.ndarray:
    """Return the embeddings of images, float32 [n, N, D]."""
    return in_batches(emu.visual_embeddings, images, size=settings.batch_size).astype(np.float32)


def text_to_image(emu: EmuModel, image_generator: ImageGenerator | None, settings: Settings) -> TaskResult:
    """Score images generated from captions of one object.

    `text_to_embedding_...` scores the embeddings without a decoder: by the scene with the nearest embeddings.
    """
    rng = settings.rng("text to image")
    examples = sample_scenes(rng, settings, count=settings.num_scenes, num_objects=1)
    scenes = [example.scene for example in examples]
    prompts = [caption(scene, rng) for scene in scenes]
    predicted = predict_embeddings(emu, [[prompt] for prompt in prompts], settings)
    nearest = nearest_scenes(emu, predicted, settings)
    agreements = [_scene_agreement(found, scene) for found, scene in zip(nearest, scenes, strict=True)]
    scores = _graded_scores("text_to_embedding", agreements, scenes)
    if image_generator is None:
        return TaskResult(scores)
    scenes, prompts = scenes[: settings.num_images], prompts[: settings.num_images]
    generated = image_generator.generate(predicted[: settings.num_images])
    grades, samples = _grade(generated, scenes, prompts=prompts, images=[()] * len(generated), settings=settings)
    return TaskResult(scores | _graded_scores("text_to_image", grades, scenes), {"text_to_image": samples})


def autoencoding(emu: EmuModel, image_generator: ImageGenerator | None, settings: Settings) -> TaskResult:
    """Score images after the encoder and the visual decoder: the upper bound of text to image for this decoder."""
    if image_generator is None:
        return TaskResult({})
    rng = settings.rng("autoencoding")
    examples = sample_scenes(rng, settings, count=settings.num_images, num_objects=1)
    scenes = [example.scene for example in examples]
    generated = image_generator.generate(encode_images(emu, [example.image for example in examples], settings))
    images = [(example.image,) for example in examples]
    grades, samples = _grade(generated, scenes, prompts=[""] * len(generated), images=images, settings=settings)
    return TaskResult(_graded_scores("autoencoding", grades, scenes), {"autoencoding": samples})


def in_context(emu: EmuModel, image_generator: ImageGenerator | None, settings: Settings) -> TaskResult:
    """Score the task "the object of image 1 in the color of image 2" by the shape and color of the result."""
    rng = settings.rng("in context")
    count = settings.num_images if image_generator is not None else settings.num_scenes
    tasks = [sample_in_context(rng, split=Split.TEST) for _ in range(count)]
    targets = [task.target for task in tasks]
    images = [
        tuple(render(scene, rng, size=settings.image_size) for scene in (task.first, task.second)) for task in tasks
    ]
    prompts = [in_context_prompt(task, *pair) for task, pair in zip(tasks, images, strict=True)]
    predicted = predict_embeddings(emu, prompts, settings)
    nearest = nearest_scenes(emu, predicted, settings)
    hits = [_scene_agreement(scene, target)["color_and_shape"] for scene, target in zip(nearest, targets, strict=True)]
    scores = by_split("in_context_embedding_accuracy", hits, targets, chance=_COLOR_AND_SHAPE_CHANCE)
    if image_generator is None:
        return TaskResult(scores)
    texts = [task.texts[2] for task in tasks]
    generated = image_generator.generate(predicted)
    grades, samples = _grade(generated, targets, prompts=texts, images=images, settings=settings)
    correct = [row["color_and_shape"] for row in grades]
    scores |= by_split("in_context_accuracy", correct, targets, chance=_COLOR_AND_SHAPE_CHANCE)
    return TaskResult(scores, {"in_context": samples})


def blending(emu: EmuModel, image_generator: ImageGenerator | None, settings: Settings) -> TaskResult:
    """Generate the image after two images, as samples without a score."""
    if image_generator is None:
        return TaskResult({})
    rng = settings.rng("blending")
    pairs = [sample_blend(rng) for _ in range(min(_NUM_BLENDS, settings.num_samples))]
    if not pairs:
        return TaskResult({})
    images = [tuple(render(scene, rng, size=settings.image_size) for scene in pair) for pair in pairs]
    generated = image_generator.generate(predict_embeddings(emu, [list(pair) for pair in images], settings))
    samples = [
        Sample(pair, "", image, "", None, describe(classify_scene(image)))
        for pair, image in zip(images, generated, strict=True)
    ]
    return TaskResult({}, {"blending": samples})


def classifier(settings: Settings) -> TaskResult:
    """Score the rule-based classifier itself on rendered images."""
    rng = settings.rng("classifier")
    examples = sample_scenes(rng, settings, count=settings.num_scenes, num_objects=1)
    rows = [agreement(classify_scene(example.image), example.scene) for example in examples]
    both = [row["color_and_shape"] for row in rows]
    scores = by_split("classifier_accuracy", both, [e.scene for e in examples], chance=_COLOR_AND_SHAPE_CHANCE)
    return TaskResult(scores | by_attribute("classifier_attributes", rows, chances=attribute_chances()))


def embeddings(emu: EmuModel, settings: Settings) -> TaskResult:
    """Measure the collapse of embeddings over images: variance, mean cosine, effective rank (see `emu_jax.losses`)."""
    examples = sample_scenes(settings.rng("embeddings"), settings, count=settings.num_scenes)
    encoded = jnp.asarray(encode_images(emu, [example.image for example in examples], settings))
    mask = jnp.ones(len(encoded))
    measures = {
        "visual_embedding_variance": embedding_variance,
        "visual_embedding_cosine": mean_pairwise_cosine,
        "visual_embedding_rank": effective_rank,
    }
    return TaskResult({key: Score(float(of(encoded, mask=mask)), len(encoded)) for key, of in measures.items()})


def nearest_scenes(emu: EmuModel, predicted: np.ndarray, settings: Settings) -> list[Scene]:
    """Return for each row the scene of one object whose image has the nearest embeddings, each dimension normalized."""
    catalog = [
        Scene((Object(shape, color, size, location),), background)
        for shape, color, size, location, background in product(SHAPES, COLORS, SIZES, LOCATIONS, BACKGROUNDS)
    ]
    rng = settings.rng("catalog")  # has no effect without jitter
    rendered = [render(scene, rng, size=settings.image_size, jitter=NO_JITTER) for scene in catalog]
    known = encode_images(emu, rendered, settings).reshape(len(catalog), -1)
    scale = 1 / (known.std(axis=0) + 1e-6)
    known, queries = known * scale, predicted.reshape(len(predicted), -1) * scale
    distances = np.square(known).sum(1) - 2 * queries @ known.T
    return [catalog[i] for i in distances.argmin(1)]


def describe(detected: DetectedScene) -> str:
    """Return the detected scene as text: "large red circle at the top left on white"."""
    item = detected.largest
    if item is None:
        return f"nothing on {detected.background.value}"
    return f"{name(item)} {where(item.location)} on {detected.background.value}"  # type: ignore[arg-type]


def _scene_agreement(found: Scene, scene: Scene) -> dict[str, bool]:
    correct = {a: getattr(found.object, a) is getattr(scene.object, a) for a in ATTRIBUTES[:-1]}
    correct["background"] = found.background is scene.background
    return correct | {"color_and_shape": correct["color"] and correct["shape"]}


def _grade(
    generated: np.ndarray,
    scenes: Sequence[Scene],
    *,
    prompts: Sequence[str],
    images: Sequence[tuple[np.ndarray, ...]],
    settings: Settings,
) -> tuple[list[dict[str, bool]], list[Sample]]:
    detected = [classify_scene(image) for image in generated]
    grades = [agreement(found, scene) for found, scene in zip(detected, scenes, strict=True)]
    samples = [
        Sample(
            images[i],
            prompts[i],
            generated[i],
            name(scenes[i].object),
            grades[i]["color_and_shape"],
            describe(detected[i]),
        )
        for i in range(min(len(generated), settings.num_samples))
    ]
    return grades, samples


def _graded_scores(prefix: str, grades: Sequence[dict[str, bool]], scenes: Sequence[Scene]) -> Scores:
    both = [row["color_and_shape"] for row in grades]
    return by_split(f"{prefix}_color_and_shape", both, scenes, chance=_COLOR_AND_SHAPE_CHANCE) | by_attribute(
        f"{prefix}_attributes", grades, chances=attribute_chances()
    )
