"""Messages for compiler failures."""

import re

import pytest

from emu_jax.compile_analysis.memory import Memory
from emu_jax.compile_analysis.report import explain_failure
from emu_jax.compile_analysis.topologies import parse_topology

# Messages of libtpu 0.0.42 and 0.0.52.
MESSAGES = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 97.50G of 95.74G "
    "hbm. Exceeded hbm capacity by 1.76G.",
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (97.50G) exceeds available HBM (95.73G). HLO module: jit_train_step.",
)


@pytest.mark.parametrize("message", MESSAGES)
def test_required_memory_of_a_program_that_does_not_fit(message):
    line = explain_failure(message, parse_topology("v5p:4x4x4"))
    assert re.match(r"The program does not fit on v5p:4x4x4: it requires 97\.50G of 95\.7\dG per chip\. ", line)
    assert "\n" not in line


def test_any_other_failure_is_one_line():
    assert explain_failure("INTERNAL: first\nsecond", parse_topology("v7x:2x2x1")) == (
        "The compiler failed for v7x:2x2x1: INTERNAL: first second"
    )


def test_memory_that_libtpu_counts_more_than_once_still_fits():
    """libtpu 0.0.50.1 reports these numbers for the 14B step on v5p:4x4x4, which it accepts (0.0.52: 89.67 GiB)."""
    memory = Memory(
        arguments=2_740_772_864,
        outputs=1_664,
        temporaries=135_003_136_544,
        code=121_919_488,
        peak=95_591_491_712,
        limit=95.73 * 2**30,
    )
    assert memory.allocated > memory.limit
    assert memory.total == 95_591_491_712 + 121_919_488
    assert memory.fits


def test_memory_above_the_limit_does_not_fit():
    assert not Memory(arguments=60, outputs=0, temporaries=50, code=0, peak=110, limit=100).fits
