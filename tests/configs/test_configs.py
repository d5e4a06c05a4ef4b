"""The files in configs/: known fields, consistent shapes of the train step, and the published numbers."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from emu_jax.config import from_config_dict, to_dict
from emu_jax.errors import UserError
from emu_jax.layers.saved import NAMES
from emu_jax.sharding.mesh import make_mesh
from emu_jax.sharding.specs import unbox
from emu_jax.training.chips import SPARSE_CORE_COLLECTIVES
from emu_jax.training.optimizer import make_optimizer, make_schedule, peak_learning_rate
from emu_jax.training.partition import flatten, split
from emu_jax.training.runs.emu import EmuRunConfig, for_chip, make_stage, read_emu_config, with_vocabulary
from emu_jax.training.runs.registry import RUNS
from emu_jax.training.runs.vae import VAERunConfig
from emu_jax.training.runs.visual_decoder import VisualDecoderRunConfig
from emu_jax.training.state import abstract_state
from emu_jax.training.step import make_train_step

ROOT = Path(__file__).resolve().parents[2]
PHASES = {
    "tiny": ("captions", "both"),
    "scaling": ("cpu", "one_gpu", "pod"),
    "demo": ("captions", "pretrain", "vae", "unet"),
    "visual_decoder": ("predicted", "encoded", "stored"),
    **{f"scratch_{size}": ("captions", "both") for size in ("50m", "150m", "400m", "1b")},
}
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "common"))
CONFIGS = [(name, phase) for name in FILES for phase in PHASES.get(name, ("",))]
RUN_CONFIGS = {"vae": VAERunConfig, "visual_decoder": VisualDecoderRunConfig}


def load(name: str, phase: str = "") -> ConfigDict:
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(phase) if phase else module.get_config()


@pytest.mark.parametrize(("name", "phase"), CONFIGS)
def test_every_field_is_known_and_survives_json(name, phase):
    config = load(name, phase)
    cls = RUN_CONFIGS.get(config.stage, EmuRunConfig)
    run = from_config_dict(cls, config)
    assert from_config_dict(cls, to_dict(run)) == run


@pytest.mark.parametrize(
    ("name", "phase"), [(n, p) for n, p in CONFIGS if n != "visual_decoder" and p not in ("vae", "unet")]
)
def test_the_train_step_has_consistent_shapes(name, phase):
    run = read_emu_config(load(name, phase))
    run = with_vocabulary(run, vocab_size=run.model.decoder.vocab_size or 1000)
    stage = make_stage(run, image_token_id=run.model.decoder.vocab_size - 1)
    # Sixteen rows, so that all meshes divide them; the shapes per row are those of the config.
    stage = dataclasses.replace(stage, batch=dataclasses.replace(stage.batch, batch_size=16))
    mesh = make_mesh(run.train.mesh)
    optimizer = make_optimizer(run.train.optimizer, steps=run.train.steps)
    with jax.set_mesh(mesh):
        state = abstract_state(stage, optimizer, config=run.train.optimizer, mesh=mesh)
        step = make_train_step(stage, config=run.train.optimizer, steps=run.train.steps)
        new_state, metrics = jax.eval_shape(step, state, stage.batch_spec())
    same = jax.tree.map(lambda one, other: (one.shape, one.dtype) == (other.shape, other.dtype), state, new_state)
    assert all(jax.tree.leaves(same))
    assert {"loss", "loss/text", "loss/regression", "visual_embedding_rank"} <= set(metrics.names)
    # A learning-rate pattern that matches nothing would have no effect and give no error. (It may match parameters that
    # this phase freezes: phases share their rates.)
    for pattern, _ in run.train.optimizer.part_learning_rates:
        assert flatten(split(state.params, (pattern,))[0]), pattern


@pytest.mark.parametrize(("name", "millions"), [("50m", 50), ("150m", 150), ("400m", 400), ("1b", 1000)])
def test_scratch_sizes_match_their_names(name, millions):
    config = load(f"scratch_{name}", "captions")
    stage = make_stage(read_emu_config(config), image_token_id=32003)
    shapes = [leaf.shape for leaf in jax.tree.leaves(unbox(jax.eval_shape(stage.init, jax.random.key(0))))]
    tables = [shape for shape in shapes if max(shape) >= config.model.decoder.vocab_size]
    assert len(tables) == 2  # of the decoder and of lm_head
    counted = sum(math.prod(shape) for shape in shapes) - sum(math.prod(shape) for shape in tables)
    assert abs(counted / 1e6 - millions) < 0.05 * millions
    tokens = config.train.steps * config.data.batch.batch_size * config.data.batch.length
    assert 18 * millions < tokens / 1e6 < 22 * millions


@pytest.mark.parametrize(
    ("device_kind", "vision", "decoder"),
    [("TPU v5", NAMES, NAMES), ("TPU v5 lite", (), NAMES), ("cpu", (), ())],
)
def test_saved_activations_of_the_14b_depend_on_the_chip(device_kind, vision, decoder):
    model = for_chip(read_emu_config(load("pretrain_14b")), device_kind=device_kind).model
    assert (model.vision.saved_activations, model.decoder.saved_activations) == (vision, decoder)


def test_compiler_options_of_the_chip_come_before_those_of_the_user():
    run = read_emu_config(load("pretrain_14b"))
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, compiler_options=("xla_a=1",)))
    assert for_chip(run, device_kind="cpu").train.compiler_options == ("xla_a=1",)
    assert for_chip(run, device_kind="TPU v5").train.compiler_options == (*SPARSE_CORE_COLLECTIVES, "xla_a=1")


def test_pretraining_has_the_papers_numbers():
    run = read_emu_config(load("pretrain_14b"))
    optimizer = run.train.optimizer
    rates = [peak_learning_rate(optimizer, f"{part}/kernel") for part in ("vision_encoder", "causal_former", "decoder")]
    assert rates == [4e-5, 1e-4, 3e-5]
    assert (optimizer.b1, optimizer.b2, optimizer.eps, optimizer.weight_decay) == (0.9, 0.98, 1e-6, 0.05)
    assert (run.train.steps, run.data.batch.length, run.data.frames) == (10_000, 1024, 8)
    assert [one.weight for one in run.data.sets] == [128, 128, 64, 16, 16]


def test_instruction_tuning_trains_lora_and_two_token_rows_and_stores_the_rest_in_bfloat16():
    run = read_emu_config(load("instruct_14b"))
    stage = make_stage(run, image_token_id=32003)
    trainable, frozen = split(unbox(jax.eval_shape(stage.init, jax.random.key(0))), stage.trainable)
    leaves = flatten(trainable)
    assert leaves.pop("decoder/token_embedding").dtype == leaves.pop("lm_head/projection/kernel").dtype == "float32"
    assert {path.rsplit("/", 1)[-1] for path in leaves} == {"lora_a", "lora_b"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(frozen)} == {"bfloat16"}
    # q, k, v and o in 40 layers: two matrices of 5120 x 16 each.
    assert sum(math.prod(leaf.shape) for leaf in leaves.values()) == 40 * 4 * 2 * 5120 * 16


def test_stage_names():
    config = load("tiny", "captions")
    assert config.stage == "caption_warmup"
    run = with_vocabulary(read_emu_config(config), vocab_size=1000)
    loss_weights = {}
    for name in ("pretrain", "caption_warmup", "instruct"):
        stage = make_stage(dataclasses.replace(run, stage=name, instruct=True), image_token_id=999)
        assert stage.name == name
        loss_weights[name] = stage.loss_weights["regression"]
    assert loss_weights == {"pretrain": 1.0, "caption_warmup": 0.0, "instruct": 1.0}
    assert {"pretrain", "caption_warmup", "instruct", "dpo", "visual_decoder", "vae"} == set(RUNS)
    with pytest.raises(UserError, match=r"set config.instruct=true"):
        make_stage(dataclasses.replace(run, stage="instruct"), image_token_id=999)
    with pytest.raises(UserError, match="stage must be one of pretrain, caption_warmup, instruct"):
        make_stage(dataclasses.replace(run, stage="pretrane"), image_token_id=999)


def test_the_visual_decoder_has_the_papers_numbers():
    run = from_config_dict(VisualDecoderRunConfig, load("visual_decoder"))
    schedule = make_schedule(run.train.optimizer, steps=run.train.steps)
    rates = [
        run.train.optimizer.learning_rate * float(schedule(jnp.int32(step))) for step in (0, 4999, 9999, 10000, 14000)
    ]
    np.testing.assert_allclose(rates, [1e-4 / 5000, 1e-4, 1e-4, 5e-5, 1e-5], rtol=1e-5)
    assert run.computed.max_caption_length == 150
    assert [one.weight for one in run.computed.sets] == [7.0, 2.0]
    assert run.training.condition_dropout == 0.1


def test_contradicting_fields_are_one_clear_error():
    for path, value, message in (
        ("data.num_image_tokens", 8, "causal_former.num_image_tokens is 4"),
        ("data.batch.image_size", 64, "vision.image_size is 32"),
        ("data.batch.length", 4096, "max_length, which is 512"),
    ):
        config = load("tiny", "captions")
        config.update_from_flattened_dict({path: value})
        with pytest.raises(UserError, match=message):
            read_emu_config(config)
    with pytest.raises(UserError, match="captions and both"):
        load("tiny", "capshuns")
    with pytest.raises(UserError, match="set it to 0"):
        with_vocabulary(read_emu_config(load("pretrain_14b")), vocab_size=31999)
