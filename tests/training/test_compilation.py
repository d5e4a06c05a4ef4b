"""Compiler options of the train step."""

import jax
import pytest

from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.training.compilation import compile_train_step
from emu_jax.training.config import TrainConfig
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.state import abstract_state
from tests.training.toy import ToyStage


def compiled(*options, accumulation=1):
    config, stage = TrainConfig(steps=10, compiler_options=options, accumulation=accumulation), ToyStage()
    mesh = make_mesh(MeshConfig(1, 1, 1), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config.optimizer, steps=config.steps)
        state = abstract_state(stage, optimizer, config=config.optimizer, mesh=mesh)
        return compile_train_step(config, stage=stage, state=state, mesh=mesh).as_text()


def test_options_reach_the_compiler_and_the_last_value_counts():
    unfused = "xla_disable_hlo_passes=fusion,cpu-parallel-task-assigner"
    cases = (("xla_cpu_enable_fast_math=false",), (unfused,), (unfused, "xla_disable_hlo_passes=none-of-this-name"))
    fusions = [compiled(*options).count(" fusion(") for options in cases]
    assert fusions[1] > fusions[0] == fusions[2]  # without the pass, XLA wraps each operation in a fusion


def test_cpu_programs_do_not_use_ynnpack():
    default = "xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
    assert "__ynn_fusion" in compiled(default), "the option has another name in this XLA"
    assert "__ynn_fusion" not in compiled()


def test_unknown_option_is_named():
    with pytest.raises(UserError, match="xla_no_such_option"):
        compiled("xla_no_such_option=true")


@pytest.mark.parametrize("option", ["xla_tpu_rwb_fusion", "=true", "xla_tpu_rwb_fusion="])
def test_option_requires_a_name_and_a_value(option):
    with pytest.raises(UserError, match="xla_tpu_rwb_fusion=false"):
        TrainConfig(steps=1, compiler_options=(option,))


def test_batch_size_must_be_a_multiple_of_the_microbatches():
    with pytest.raises(UserError, match=r"batch size 16 is not a multiple of train\.accumulation, which is 5"):
        compiled(accumulation=5)
