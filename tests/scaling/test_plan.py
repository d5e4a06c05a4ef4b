"""Ladders, counts and plans."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.config import from_config_dict, to_dict
from emu_jax.errors import UserError
from emu_jax.models.presets import emu_14b, emu_tiny
from emu_jax.scaling.folder import read_plan, write_plan
from emu_jax.scaling.ladder import LadderConfig, count
from emu_jax.scaling.plan import make_plan, plan_from_json
from emu_jax.scaling.runner import commands, slice_of
from emu_jax.scaling.study import Form, HardwareConfig, StudyConfig
from emu_jax.training.config import OptimizerConfig, Schedule
from emu_jax.training.optimizer import make_schedule
from emu_jax.training.runs.emu import read_emu_config, with_vocabulary


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.fixture(scope="module")
def base(root):
    run = read_emu_config(load(root / "configs" / "scaling.py")("cpu"))
    return with_vocabulary(run, vocab_size=516)


STUDY = StudyConfig(
    config="configs/scaling.py:cpu",
    widths=(24, 32, 48, 64),
    hardware=HardwareConfig("test", flops_per_second=1e9),
    ladder=LadderConfig(width_per_layer=32.0, head_dim=8),
    budgets=(1e11, 3e11, 1e12),
    tokens_per_param=(0.5, 500.0),
    held_out=True,
    seeds=(0, 1, 2),
    repeated=3e11,
    warmup_steps=20,
    min_steps=60,
    fill=0.9,
    images_per_token=0.03,
)


@pytest.fixture(scope="module")
def plan(base):
    return make_plan(STUDY, base)


def test_counts_are_the_kernels_of_the_model():
    counts = count(emu_14b())
    assert (counts.vision_tokens, counts.image_tokens) == (257, 32)
    assert counts.decoder == 40 * (4 * 5120**2 + 3 * 5120 * 13824) + 5120 * (32128 + 5120)
    tiny = count(emu_tiny(vocab_size=516))
    flops = tiny.flops(tokens=100, images=3)
    assert flops == 6 * (tiny.decoder * 100 + 3 * (tiny.vision * 17 + tiny.causal_former * 4))


def test_one_rule_gives_every_size():
    sizes = LadderConfig().sizes(512)
    assert sizes["decoder.num_layers"] == 8
    assert sizes["decoder.num_heads"] == 8
    assert sizes["vision.width"] % 64 == sizes["causal_former.width"] % 64 == 0
    widths = [LadderConfig().sizes(width)["vision.width"] for width in (256, 512, 1024)]
    assert widths == sorted(widths)


def test_every_run_spends_its_budget(plan):
    for run in plan.runs:
        assert run.budget == pytest.approx(run.point, rel=0.02)
        assert 0.5 <= run.tokens / run.params <= 500
        assert run.steps >= 60
        images = 0.03 * run.tokens
        assert run.budget == pytest.approx(6 * (run.decoder_params * run.tokens + run.image_params_tokens * images))
    assert {run.seed for run in plan.runs if run.point == 3e11} == {0, 1, 2}
    assert {run.seed for run in plan.runs if run.point != 3e11} == {0}
    assert {run.point for run in plan.runs if run.held_out} == {1e12}


def test_a_child_starts_where_its_parents_cooldown_begins(plan):
    runs = {run.id: run for run in plan.runs}
    children = [run for run in plan.runs if run.parent]
    assert children
    for run in children:
        parent = runs[run.parent]
        assert run.start == parent.cooldown_from < run.cooldown_from
        assert (run.width, run.seed) == (parent.width, parent.seed)
        assert parent.overrides["train.checkpoint.keep_steps"] == f"({run.start},)"
        assert run.hours < run.budget / 1e9 / 3600


def test_learning_rates_agree_up_to_the_branch(plan):
    """What makes a shared prefix exact: parent and child have the same schedule before it."""
    runs = {run.id: run for run in plan.runs}
    child = next(run for run in plan.runs if run.parent)

    def rates(run):
        config = OptimizerConfig(
            schedule=Schedule.WSD,
            warmup_steps=int(run.overrides["train.optimizer.warmup_steps"]),
            cooldown_fraction=float(run.overrides["train.optimizer.cooldown_fraction"]),
        )
        schedule = make_schedule(config, steps=run.steps)
        return np.asarray(jax.vmap(schedule)(jnp.arange(run.steps)))

    own, parents = rates(child), rates(runs[child.parent])
    np.testing.assert_array_equal(own[: child.start], parents[: child.start])
    assert own[child.start - 1] == 1.0
    assert own[child.cooldown_from] == 1.0
    assert own[-1] < 0.05


def test_fixed_tokens_give_each_size_the_same_data(base):
    study = dataclasses.replace(
        STUDY, form=Form.FIXED_TOKENS, budgets=(), tokens=(5e5, 1e6), repeated=None, held_out=False
    )
    plan = make_plan(study, base)
    assert len(plan.runs) == 8
    for run in plan.runs:
        assert run.tokens == pytest.approx(run.point, rel=0.01)


def test_a_plan_comes_back_from_json_and_may_only_be_extended(tmp_path, base, plan):
    write_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan == plan_from_json(plan.to_json())
    longer = make_plan(dataclasses.replace(STUDY, budgets=(*STUDY.budgets, 3e12)), base)
    write_plan(tmp_path, longer)
    assert len(read_plan(tmp_path).runs) > len(plan.runs)
    assert (tmp_path / "plan.csv").read_text().count("\n") == len(longer.runs) + 1
    with pytest.raises(UserError, match="another plan"):
        write_plan(tmp_path, make_plan(dataclasses.replace(STUDY, learning_rate=1e-2), base))


@pytest.mark.parametrize("of", [1, 3, 50])
def test_workers_share_complete_chains(plan, of):
    slices = [slice_of(plan, index=index, of=of) for index in range(of)]
    assert sorted(run.id for part in slices for run in part) == sorted(run.id for run in plan.runs)
    for part in slices:
        done = set()
        for run in part:
            assert run.parent is None or run.parent in done
            done.add(run.id)
    if of == 3:
        hours = [sum(run.hours for run in part) for part in slices]
        assert max(hours) < 2 * min(hours)
    with pytest.raises(UserError, match="--index"):
        slice_of(plan, index=of, of=of)


def test_commands_for_pods_copy_the_parents_checkpoint_first(plan):
    child = next(run for run in plan.runs if run.parent)
    note, copy, start = commands([child], bucket="gs://b/study/", pod_options="--type=v5p-64 --spot")
    assert note.startswith(f"# {child.id}")
    assert copy == (
        f"gcloud storage cp -r gs://b/study/{child.parent}/checkpoints/{child.start} "
        f"gs://b/study/{child.id}/checkpoints/"
    )
    assert start.startswith(
        f"tools/tpu/pod.sh keep --type=v5p-64 --spot --workdir=gs://b/study/{child.id} -- --config="
    )


@pytest.mark.parametrize(
    "preset", ["cpu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("one_gpu", "pod"))]
)
def test_presets_are_studies_of_at_least_four_sizes_at_most_budgets(root, preset):
    study = from_config_dict(StudyConfig, load(root / "experiments" / "scaling" / f"{preset}.py")())
    assert from_config_dict(StudyConfig, to_dict(study)) == study
    path, _, argument = study.config.partition(":")
    run = with_vocabulary(read_emu_config(load(root / path)(argument)), vocab_size=study.vocab_size or 516)
    points = [run.point for run in make_plan(study, run).runs if run.seed == study.seeds[0]]
    assert sum(points.count(point) >= 4 for point in study.grid) >= len(study.grid) - 1


@pytest.mark.parametrize("preset", ["one_gpu", "pod"])
def test_every_preset_is_a_study_of_a_config_that_is_there(root, preset):
    study = from_config_dict(StudyConfig, load(root / "experiments" / "scaling" / f"{preset}.py")())
    path, _, argument = study.config.partition(":")
    assert read_emu_config(load(root / path)(argument)).train.optimizer.schedule is Schedule.WSD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": ()}, "needs budgets"),
        ({"widths": (30,)}, "multiple of ladder.head_dim"),
        ({"repeated": 5.0}, "must be one of budgets"),
        ({"cooldown_fraction": 1.0}, "cooldown_fraction"),
        ({"min_steps": 10}, "warmup_steps"),
        ({"overrides": ("train.log_every",)}, "overrides"),
    ],
)
def test_a_wrong_study_is_one_clear_line(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(STUDY, **change)


def test_a_grid_without_runs_is_refused(base):
    with pytest.raises(UserError, match="No run is left"):
        make_plan(dataclasses.replace(STUDY, budgets=(1e6,), repeated=None), base)
