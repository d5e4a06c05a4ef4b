"""What the compiler of the train step is told beyond its defaults."""

import jax
import pytest

from emu_jax.errors import UserError
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.training.compilation import compile_train_step
from emu_jax.training.config import TrainConfig
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.state import abstract_state
from tests.training.toy import ToyStage


def compiled(*options):
    config, stage = TrainConfig(steps=10, compiler_options=options), ToyStage()
    mesh = make_mesh(MeshConfig(1, 1, 1), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        optimizer = make_optimizer(config.optimizer, steps=config.steps)
        state = abstract_state(stage, optimizer, config=config.optimizer, mesh=mesh)
        return compile_train_step(config, stage=stage, state=state, mesh=mesh).as_text()


def test_options_reach_the_compiler_and_the_last_of_a_name_counts():
    unfused = "xla_disable_hlo_passes=fusion,cpu-parallel-task-assigner"
    told = (("xla_cpu_enable_fast_math=false",), (unfused,), (unfused, "xla_disable_hlo_passes=none-of-this-name"))
    fusions = [compiled(*options).count(" fusion(") for options in told]
    assert fusions[1] > fusions[0] == fusions[2]  # then each operation is wrapped on its own


def test_an_option_that_the_compiler_does_not_know_is_named():
    with pytest.raises(UserError, match="xla_no_such_option"):
        compiled("xla_no_such_option=true")


@pytest.mark.parametrize("option", ["xla_tpu_rwb_fusion", "=true", "xla_tpu_rwb_fusion="])
def test_an_option_is_a_name_and_a_value(option):
    with pytest.raises(UserError, match="xla_tpu_rwb_fusion=false"):
        TrainConfig(steps=1, compiler_options=(option,))
