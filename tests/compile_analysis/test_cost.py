"""Analysis of a compiled program that is small enough to compute by hand."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from emu_jax.compile_analysis.arithmetic import hbm_traffic, matrix_flops
from emu_jax.compile_analysis.collectives import Network, replica_group
from emu_jax.compile_analysis.cost import estimate
from emu_jax.compile_analysis.hlo import Module, parse_shapes
from emu_jax.compile_analysis.loops import trip_count
from emu_jax.compile_analysis.memory import largest_temporaries
from emu_jax.compile_analysis.topologies import parse_topology
from emu_jax.hardware import CHIPS

# A loop of five iterations. Each slices a layer's weights [1024, 1024] out of their stack and gathers them from four
# chips, while a matmul with the weights runs.
PROGRAM = Path(__file__).with_name("loop.hlo").read_text()


@pytest.fixture(scope="module")
def module():
    return Module(PROGRAM)


@pytest.fixture(scope="module")
def network():
    """Eight chips along one dimension of 16 x 16: no wraparound, one link."""
    topology = parse_topology("v5e:16x16")
    return Network(topology, np.asarray([(i, 0) for i in range(8)]), np.zeros(8, int))


def test_shapes_have_bytes_and_memory_space():
    first, second, third = parse_shapes("(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/s32[]{:T(128)}, f8e4m3fn[4])")
    assert (first.bytes, first.space) == (2048, 1)
    assert (second.bytes, second.dims) == (4, ())
    assert third.bytes == 4


def test_trip_count_from_the_condition(module):
    loop = module.entry.get("loop")
    assert trip_count(module, loop, module.entry) == 5


def test_trip_count_of_a_data_dependent_loop_is_none():
    text = PROGRAM.replace("constant(5)", 'custom-call(), custom_call_target="Read"')
    module = Module(text)
    assert trip_count(module, module.entry.get("loop"), module.entry) is None


def test_operations_of_a_matmul(module):
    body = module.computations["body"]
    assert matrix_flops(module, body.get("y"), body) == 2 * 512 * 1024 * 1024
    assert matrix_flops(module, body.get("weights"), body) == 0


def test_operations_of_a_batched_matmul_written_as_convolution():
    """[8, 64, 32] times [8, 32, 16] in XLA:TPU's notation: the batch is a window with one valid input each."""
    window = "window={size=8 stride=7 pad=0_0 lhs_dilate=8}"
    text = f"""\
HloModule batch
ENTRY %main () -> f32[8,64,16] {{
  %a = bf16[8,64,32]{{2,1,0}} parameter(0)
  %b = bf16[8,32,16]{{2,1,0}} parameter(1)
  ROOT %c = f32[8,64,16]{{2,1,0}} convolution(%a, %b), {window}, dim_labels=0bf_0io->0bf
}}
"""
    module = Module(text)
    assert matrix_flops(module, module.entry.get("c"), module.entry) == 2 * 8 * 64 * 32 * 16


def test_only_the_slice_of_a_stack_is_read(module):
    body = module.computations["body"]
    assert hbm_traffic(module, body.get("weights"), body) == 2 * 1024 * 1024 * 2 + 4  # and the index


@pytest.mark.parametrize(
    ("notation", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", [0, 1, 2, 3]),
        ("replica_groups={}", list(range(8))),
    ],
)
def test_replica_groups_in_every_notation(notation, group):
    text = f"HloModule m\nENTRY %main () -> f32[4] {{\n  ROOT %r = f32[4]{{0}} all-reduce(%x), {notation}\n}}\n"
    assert replica_group(Module(text).entry.get("r"), devices=8).tolist() == group


def test_cost_of_the_program_by_hand(network):
    chip = CHIPS["v5e"]
    cost = estimate(PROGRAM, generation="v5e", chip=chip, network=network)
    slicing = 2 * 2 * 1024 * 1024 / (chip.bandwidth * 0.8)  # time of its bytes, shorter than its cycles
    matmul = 17500 / chip.clock
    gather = 4096 * 1024 * 2 * 3 / 4 / chip.link  # not hidden by the overlapped matmul
    reduce = 2 * 512 * 4 * 3 / 4 / chip.link
    assert matmul < gather
    assert cost.compute_seconds == pytest.approx(5 * (slicing + matmul), rel=1e-4)
    assert cost.seconds == pytest.approx(5 * (slicing + gather) + reduce, rel=1e-4)
    assert cost.flops == 5 * 2 * 512 * 1024 * 1024
    found = {(use.kind, use.in_loop, use.overlapped): use for use in cost.collectives}
    assert found["all-gather", True, True].count == 5
    assert found["all-reduce", False, False].bytes == 512 * 4
    assert cost.unknown_loops == []


def test_bytes_sent_to_another_slice_through_the_hosts_are_counted(network):
    """A sum over slices in the notation of libtpu. The time of the transfer is unknown."""
    text = """\
HloModule m, is_scheduled=true
ENTRY %main (x: bf16[512,1024]) -> (bf16[512,1024], u32[], token[]) {
  %x = bf16[512,1024]{1,0} parameter(0)
  %order = token[] after-all()
  %received = (bf16[512,1024]{1,0}, u32[], token[]) recv(%order), channel_id=1, is_host_transfer=true
  ROOT %sent = (bf16[512,1024]{1,0}, u32[], token[]) send(%x, %order), channel_id=2, is_host_transfer=true
}
"""
    cost = estimate(text, generation="v5e", chip=CHIPS["v5e"], network=network)
    assert cost.between_slices == 2 * 512 * 1024
    assert cost.seconds == 0


def test_a_sparse_core_collective_starts_when_it_gets_its_data(network):
    """In the notation of libtpu: the start has no data, the update passes them."""
    text = """\
HloModule m, is_scheduled=true
%fused_matmul (param_0: bf16[512,1024], param_1: bf16[1024,1024]) -> bf16[512,1024] {
  %param_0 = bf16[512,1024]{1,0} parameter(0)
  %param_1 = bf16[1024,1024]{1,0} parameter(1)
  ROOT %matmul = bf16[512,1024]{1,0} convolution(%param_0, %param_1), dim_labels=bf_io->bf
}
%moved (p: bf16[1024,1024]) -> bf16[1024,1024] {
  %p = bf16[1024,1024]{1,0} parameter(0)
  ROOT %sum = bf16[1024,1024]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
}
%offloaded (q: bf16[1024,1024]) -> bf16[1024,1024] {
  %q = bf16[1024,1024]{1,0} parameter(0)
  ROOT %c = bf16[1024,1024]{1,0} custom-call(%q), custom_call_target="Core", called_computations={%moved}
}
ENTRY %main (x: bf16[512,1024], weights: bf16[1024,1024]) -> bf16[1024,1024] {
  %x = bf16[512,1024]{1,0} parameter(0)
  %weights = bf16[1024,1024]{1,0} parameter(1)
  %start = ((), (), s32[8]{0}) STARTS
  FIRST
  %given = ((bf16[1024,1024]{1,0}), bf16[1024,1024]{1,0}, s32[8]{0}) async-update(%start, %weights)
  LAST
  ROOT %summed = bf16[1024,1024]{1,0} async-done(%given)
}
"""
    matmul = "%y = bf16[512,1024]{1,0} fusion(%x, %weights), kind=kOutput, calls=%fused_matmul"
    chip = CHIPS["v5e"]
    communicating = 2 * (2 * 1024 * 1024) * 3 / 4 / chip.link
    computing = 4 * 1024 * 1024 / (chip.bandwidth * 0.8)  # no cycles given: time of its bytes
    starts = (
        "async-start(), calls=%offloaded",
        'custom-call-start(), custom_call_target="C", called_computations={%moved}',
    )
    orders = ((matmul, "", computing + communicating), ("", matmul, communicating))
    for start, (first, last, seconds) in itertools.product(starts, orders):
        program = text.replace("STARTS", start).replace("FIRST", first).replace("LAST", last)
        cost = estimate(program, generation="v5e", chip=chip, network=network)
        assert cost.compute_seconds == pytest.approx(computing)
        assert cost.seconds == pytest.approx(seconds)
        assert [(use.kind, use.overlapped) for use in cost.collectives] == [("all-reduce", True)]


def test_largest_temporaries_have_a_source_line():
    found = largest_temporaries(PROGRAM, count=2)
    assert [temporary.shape for temporary in found] == ["bf16[4096,1024]", "bf16[1024,1024]"]
    sources = {temporary.source for temporary in largest_temporaries(PROGRAM)}
    assert "emu_jax/layers/mlp.py:47" in sources


def test_source_tables_and_multi_line_kernels_of_newer_compilers():
    text = """\
HloModule kernel

FileNames
1 "/home/me/emu_jax/layers/mlp.py"
2 "/home/me/jax/numpy.py"

FunctionNames
1 "call"

FileLocations
1 {file_name_id=1 function_name_id=1 line=47 end_line=47 column=4 end_column=9}
2 {file_name_id=2 function_name_id=1 line=9 end_line=9 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %kernel = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"metadata":{
"block": 128
}}, metadata={op_name="attend"}
  ROOT %out = f32[8]{0} negate(%kernel), metadata={op_name="mlp/neg" stack_frame_id=2}
}
"""
    module = Module(text)
    assert list(module.entry.instructions) == ["a", "kernel", "out"]
    assert module.source(module.entry.get("out")) == "emu_jax/layers/mlp.py:47"
    assert module.source(module.entry.get("kernel")) == "attend"
