"""docs/recipe.md shows the values of the configs."""

from tests.configs import recipe
from tests.configs.recipe import PAGE, UNKNOWN, render

TABLES = (recipe.pretraining, recipe.visual_decoder, recipe.instruction_tuning)


def test_the_page_equals_the_configs():
    assert PAGE.read_text(encoding="utf-8") == render(), "run python -m tests.configs.recipe"


def test_every_value_that_is_not_published_has_a_reason():
    rows = [row for table in TABLES for row in table()]
    assert [row.name for row in rows if row.paper == UNKNOWN and not row.reason] == []


def test_the_step_reaches_the_samples_of_the_paper():
    import importlib

    module = importlib.import_module("configs.pretrain_14b")
    run = recipe.read_emu_config(module.get_config())
    tokens, images = recipe.expected_sizes(run, module.SIZES)
    documents = run.data.batch.batch_size * run.data.batch.length * 0.95 / tokens
    assert run.samples_per_step <= documents <= 1.1 * run.samples_per_step
    slots = run.data.batch.batch_size * run.data.batch.max_images
    assert 0.8 <= images * documents / slots <= 1, "the ratio of the mixture"


def test_no_set_has_more_images_than_the_paper():
    run = recipe.read_emu_config(recipe.importlib.import_module("configs.pretrain_14b").get_config())
    most = {one.path.rpartition("/")[2]: one.max_images for one in run.data.sets}
    assert (most["mmc4"], most["webvid"]) == (5, 8)
