"""The tasks of the synthetic shapes world by name; all use scenes that no training file contains."""

from collections.abc import Callable
from functools import partial

from emu_jax.demo import generation_tasks, understanding_tasks
from emu_jax.demo.examples import Settings, TaskResult
from emu_jax.demo.models import Models


def world_tasks(models: Models, settings: Settings, *, grade_classifier: bool) -> dict[str, Callable[[], TaskResult]]:
    """Return the tasks by their progress name, ready to run.

    `grade_classifier` adds the score of the rule-based classifier itself, which does not depend on the models.
    """
    emu, image_generator = models.emu, models.image_generator
    tasks: dict[str, Callable[[], TaskResult]] = {
        "captions": partial(understanding_tasks.captions, emu, settings),
        "questions": partial(understanding_tasks.visual_questions, emu, settings),
        "videos": partial(understanding_tasks.videos, emu, settings),
        "embeddings": partial(generation_tasks.embeddings, emu, settings),
        "text to image": partial(generation_tasks.text_to_image, emu, image_generator, settings),
        "in context": partial(generation_tasks.in_context, emu, image_generator, settings),
        "blending": partial(generation_tasks.blending, emu, image_generator, settings),
        "autoencoding": partial(generation_tasks.autoencoding, emu, image_generator, settings),
    }
    if grade_classifier:
        tasks["classifier"] = partial(generation_tasks.classifier, settings)
    return tasks
