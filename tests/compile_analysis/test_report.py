"""What the command says where the compiler gives up."""

import pytest

from emu_jax.compile_analysis.report import why
from emu_jax.compile_analysis.topologies import read_topology

# As libtpu 0.0.42 and 0.0.52 write them.
REFUSALS = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 97.50G of 95.74G "
    "hbm. Exceeded hbm capacity by 1.76G.",
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (97.50G) exceeds available HBM (95.73G). HLO module: jit_train_step.",
)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_program_that_does_not_fit_is_told_with_its_size(refusal):
    told = why(refusal, read_topology("v5p:4x4x4"))
    assert told.startswith("The program wants 97.50G of a chip's 95.7")
    assert "\n" not in told


def test_any_other_refusal_is_one_line():
    assert why("INTERNAL: first\nsecond", read_topology("v7x:2x2x1")) == (
        "The compiler gave up for v7x:2x2x1: INTERNAL: first second"
    )
