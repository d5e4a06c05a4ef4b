"""The 14B train step with few layers, compiled by the TPU compiler where it is installed."""

import importlib.util

import pytest

from tests.compile_analysis.thin import compiler_version, golden, golden_part, run_compile

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="the TPU compiler is not installed (pip install -e '.[compile]')",
    ),
]


@pytest.fixture(scope="module")
def report(user_environment):
    return run_compile(user_environment)


def test_report_is_complete_and_consistent(report):
    keys = {"model_flops", "hardware_flops", "hbm_bytes", "fits", "step_seconds_estimate", "mfu_estimate"}
    assert keys | {"compile_seconds", "collectives"} <= set(report)
    assert report["fits"]
    peak = 4 * 459e12
    assert report["mfu_estimate"] == pytest.approx(report["model_flops"] / report["step_seconds_estimate"] / peak)
    assert 0.05 < report["mfu_estimate"] < 1  # few rows, so the weight all-gathers are exposed
    assert report["hardware_flops"] > report["model_flops"]
    assert report["compile_seconds"] < 120


def test_memory_and_collectives_match_the_golden_file(report):
    """After an intended change, `python -m tests.compile_analysis.thin` writes the file."""
    if compiler_version() not in golden():
        pytest.skip(f"the golden file has {', '.join(golden())}, not the installed {compiler_version()}")
    assert golden_part(report) == golden()[compiler_version()]


def test_no_activation_is_gathered(report):
    """The all-gathers in the loops are as large as the weights of a layer in bfloat16."""
    layer = 4 * 5120**2 + 3 * 5120 * 13824
    vision = 4 * 1408**2 + 2 * 1408 * 6144
    former = 8 * 768**2 + 2 * 1408 * 768 + 2 * 768 * 3072
    gathers = sum(u["bytes"] for u in report["collectives"] if u["kind"] == "all-gather" and u["in_loop"])
    passes = 2  # forward and backward
    assert gathers <= passes * 2 * 2 * (layer + vision + former)  # gathering one activation would exceed this
