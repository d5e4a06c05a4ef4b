"""The thin 14B step through the real TPU compiler, where it is installed."""

import importlib.util

import pytest

from tests.compile_analysis.thin import compiled, golden, held, version

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="the TPU compiler is not installed (pip install -e '.[compile]')",
    ),
]


@pytest.fixture(scope="module")
def report(user_environment):
    return compiled(user_environment)


def test_the_report_tells_what_it_should(report):
    wanted = {"model_flops", "hardware_flops", "hbm_bytes", "fits", "step_seconds_estimate", "mfu_estimate"}
    assert wanted | {"compile_seconds", "collectives"} <= set(report)
    assert report["fits"]
    peak = 4 * 459e12
    assert report["mfu_estimate"] == pytest.approx(report["model_flops"] / report["step_seconds_estimate"] / peak)
    assert 0.05 < report["mfu_estimate"] < 1  # few rows wait for many weights
    assert report["hardware_flops"] > report["model_flops"]
    assert report["compile_seconds"] < 120


def test_memory_and_collectives_are_what_they_were(report):
    """Compare with the golden file; `python -m tests.compile_analysis.thin` writes it after an intended change."""
    if version() not in golden():
        pytest.skip(f"the file is of {', '.join(golden())}, and {version()} is installed: programs differ")
    assert held(report) == golden()[version()]


def test_no_activation_is_gathered(report):
    """What is gathered in a loop are a layer's weights in bfloat16: nothing larger, and nothing of a batch's shape."""
    layer = 4 * 5120**2 + 3 * 5120 * 13824
    vision = 4 * 1408**2 + 2 * 1408 * 6144
    former = 8 * 768**2 + 2 * 1408 * 768 + 2 * 768 * 3072
    gathers = sum(u["bytes"] for u in report["collectives"] if u["kind"] == "all-gather" and u["in_loop"])
    passes = 2  # forward and backward
    assert gathers <= passes * 2 * 2 * (layer + vision + former)  # one more of a row's width would be over it
