"""Reading a compiled program, on one small enough to reckon by hand."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from emu_jax.compile_analysis.arithmetic import hbm_traffic, matrix_flops
from emu_jax.compile_analysis.collectives import Network, replica_group
from emu_jax.compile_analysis.cost import estimate
from emu_jax.compile_analysis.hlo import Module, read_shapes
from emu_jax.compile_analysis.loops import trip_count
from emu_jax.compile_analysis.memory import largest_temporaries
from emu_jax.compile_analysis.topologies import CHIPS, read_topology

# Five turns; in each a layer's weights [1024, 1024] are cut out of their stack, gathered from four chips while the
# last turn's are multiplied, and the product is kept in a stack.
PROGRAM = Path(__file__).with_name("loop.hlo").read_text()


@pytest.fixture(scope="module")
def module():
    return Module(PROGRAM)


@pytest.fixture(scope="module")
def network():
    """Eight chips along the ring of sixteen: no wrap, one link."""
    topology = read_topology("v5e:16x16")
    return Network(topology, np.asarray([(i, 0) for i in range(8)]), np.zeros(8, int))


def test_shapes_know_their_bytes_and_where_they_lie():
    first, second, third = read_shapes("(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/s32[]{:T(128)}, f8e4m3fn[4])")
    assert (first.bytes, first.space) == (2048, 1)
    assert (second.bytes, second.dims) == (4, ())
    assert third.bytes == 4


def test_a_loops_turns_are_read_from_its_condition(module):
    loop = module.entry.get("loop")
    assert trip_count(module, loop, module.entry) == 5


def test_a_loop_that_data_ends_has_no_count():
    text = PROGRAM.replace("constant(5)", 'custom-call(), custom_call_target="Read"')
    module = Module(text)
    assert trip_count(module, module.entry.get("loop"), module.entry) is None


def test_operations_of_a_product(module):
    body = module.computations["body"]
    assert matrix_flops(module, body.get("y"), body) == 2 * 512 * 1024 * 1024
    assert matrix_flops(module, body.get("weights"), body) == 0


def test_a_batch_of_products_is_a_convolution_with_a_window():
    """[8, 64, 32] times [8, 32, 16], as XLA:TPU writes it: the batch is a window that meets one input place a time."""
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


def test_what_is_cut_out_of_a_stack_is_all_that_is_read(module):
    body = module.computations["body"]
    assert hbm_traffic(module, body.get("weights"), body) == 2 * 1024 * 1024 * 2 + 4  # and the index


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", [0, 1, 2, 3]),
        ("replica_groups={}", list(range(8))),
    ],
)
def test_groups_in_every_writing(written, group):
    text = f"HloModule m\nENTRY %main () -> f32[4] {{\n  ROOT %r = f32[4]{{0}} all-reduce(%x), {written}\n}}\n"
    assert replica_group(Module(text).entry.get("r"), devices=8).tolist() == group


def test_the_whole_program_by_hand(network):
    chip = CHIPS["v5e"]
    cost = estimate(PROGRAM, generation="v5e", chip=chip, network=network)
    cut = 2 * 2 * 1024 * 1024 / (chip.bandwidth * 0.8)  # its bytes, which are quicker than its cycles
    product = 17500 / chip.clock
    gather = 4096 * 1024 * 2 * 3 / 4 / chip.link  # not covered by the product beside it
    reduce = 2 * 512 * 4 * 3 / 4 / chip.link
    assert product < gather
    assert cost.compute_seconds == pytest.approx(5 * (cut + product), rel=1e-4)
    assert cost.seconds == pytest.approx(5 * (cut + gather) + reduce, rel=1e-4)
    assert cost.flops == 5 * 2 * 512 * 1024 * 1024
    found = {(use.kind, use.in_loop, use.overlapped): use for use in cost.collectives}
    assert found["all-gather", True, True].count == 5
    assert found["all-reduce", False, False].bytes == 512 * 4
    assert cost.unknown_loops == []


def test_what_goes_to_another_slice_by_way_of_the_hosts_is_counted(network):
    """As libtpu writes a sum over slices: what is sent costs the chip no time that is known here."""
    text = """\
HloModule m, is_scheduled=true
ENTRY %main (x: bf16[512,1024]) -> (bf16[512,1024], u32[], token[]) {
  %x = bf16[512,1024]{1,0} parameter(0)
  %order = token[] after-all()
  %came = (bf16[512,1024]{1,0}, u32[], token[]) recv(%order), channel_id=1, is_host_transfer=true
  ROOT %sent = (bf16[512,1024]{1,0}, u32[], token[]) send(%x, %order), channel_id=2, is_host_transfer=true
}
"""
    cost = estimate(text, generation="v5e", chip=CHIPS["v5e"], network=network)
    assert cost.between_slices == 2 * 512 * 1024
    assert cost.seconds == 0


def test_a_collective_on_a_core_of_its_own_begins_when_it_is_given_its_data(network):
    """As libtpu writes those of SparseCores: the start is without data, which come by the update."""
    text = """\
HloModule m, is_scheduled=true
%fused_product (param_0: bf16[512,1024], param_1: bf16[1024,1024]) -> bf16[512,1024] {
  %param_0 = bf16[512,1024]{1,0} parameter(0)
  %param_1 = bf16[1024,1024]{1,0} parameter(1)
  ROOT %product = bf16[512,1024]{1,0} convolution(%param_0, %param_1), dim_labels=bf_io->bf
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
    product = "%y = bf16[512,1024]{1,0} fusion(%x, %weights), kind=kOutput, calls=%fused_product"
    chip = CHIPS["v5e"]
    moving = 2 * (2 * 1024 * 1024) * 3 / 4 / chip.link
    working = 4 * 1024 * 1024 / (chip.bandwidth * 0.8)  # without cycles, by its bytes
    starts = (
        "async-start(), calls=%offloaded",
        'custom-call-start(), custom_call_target="C", called_computations={%moved}',
    )
    orders = ((product, "", working + moving), ("", product, moving))
    for start, (first, last, seconds) in itertools.product(starts, orders):
        written = text.replace("STARTS", start).replace("FIRST", first).replace("LAST", last)
        cost = estimate(written, generation="v5e", chip=chip, network=network)
        assert cost.compute_seconds == pytest.approx(working)
        assert cost.seconds == pytest.approx(seconds)
        assert [(use.kind, use.overlapped) for use in cost.collectives] == [("all-reduce", True)]


def test_the_largest_temporaries_tell_their_line():
    found = largest_temporaries(PROGRAM, count=2)
    assert [one.shape for one in found] == ["bf16[4096,1024]", "bf16[1024,1024]"]
    assert any(one.source == "emu_jax/layers/mlp.py:47" for one in largest_temporaries(PROGRAM))


def test_newer_compilers_tell_lines_in_tables_and_kernels_write_over_several():
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
