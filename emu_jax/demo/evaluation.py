"""The drawn world as an evaluation: its tasks by name, all on scenes that no training file holds."""

from collections.abc import Callable
from functools import partial

from emu_jax.demo import generation_tasks as painting_tasks
from emu_jax.demo import understanding_tasks as reading_tasks
from emu_jax.demo.examples import Settings, TaskResult
from emu_jax.demo.models import ImageGenerator, Reader


def drawn_world(
    emu: Reader, painter: ImageGenerator | None, settings: Settings, *, judge: bool = True
) -> dict[str, Callable[[], TaskResult]]:
    """The tasks, ready to run, by the name that progress shows.

    Without a painter there are no scores of pictures. `judge` adds the pixel reader's own score, the same for all.
    """
    tasks: dict[str, Callable[[], TaskResult]] = {
        "captions": partial(reading_tasks.captions, emu, settings),
        "questions": partial(reading_tasks.visual_questions, emu, settings),
        "films": partial(reading_tasks.films, emu, settings),
        "embeddings": partial(painting_tasks.embeddings, emu, settings),
        "text to image": partial(painting_tasks.text_to_image, emu, painter, settings),
        "in context": partial(painting_tasks.in_context, emu, painter, settings),
        "blending": partial(painting_tasks.blending, emu, painter, settings),
        "autoencoding": partial(painting_tasks.autoencoding, emu, painter, settings),
    }
    if judge:
        tasks["pixel reader"] = partial(painting_tasks.pixel_reader, settings)
    return tasks
