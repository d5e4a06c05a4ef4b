"""Settings of a run that depend on the TPU generation."""

import dataclasses

from emu_jax.bounds import Checked
from emu_jax.models.config import check_saved_activations

# Run all-reduces of gradients and one-dimensional all-gathers on the SparseCores, at the same time as matmuls. Without
# these options, v5p waits for each of them (experiments/records/compile_v5p.md). Source: Google's recipe for v5p,
# AI-Hypercomputer/tpu-recipes, training/v5p/DeepSeek3-671B-MaxText, without its profiling options and the options that
# libtpu no longer has.
SPARSE_CORE_COLLECTIVES = (
    "xla_tpu_enable_sparse_core_collective_offload_all_gather=true",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce=true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=true",
    # Required by the three above: the TensorCore's array layout, and one SparseCore program per chip.
    "xla_tpu_use_tc_device_shape_on_sc=true",
    "xla_sc_enable_instruction_fusion=false",
    "xla_sc_disable_megacore_partitioning=true",
)

# Gather each kernel completely before its matmul. By default XLA passes the shards of some kernels around a ring, with
# one matmul per shard: the step of the U-Net became 700 loops and took twice as long
# (experiments/records/compile_visual_decoder.md).
GATHERED_KERNELS = ("xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",)


@dataclasses.dataclass(frozen=True)
class ChipConfig(Checked):
    """Activations that layers save for the backward pass, and compiler options, on one TPU generation.

    Attributes:
      name: TPU generation, such as "v5e".
      vision: replaces `model.vision.saved_activations` on this generation.
      causal_former: replaces `model.causal_former.saved_activations`.
      decoder: replaces `model.decoder.saved_activations`.
      compiler_options: placed before `train.compiler_options`.
    """

    name: str
    vision: tuple[str, ...] = ()
    causal_former: tuple[str, ...] = ()
    decoder: tuple[str, ...] = ()
    compiler_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for names in (self.vision, self.causal_former, self.decoder):
            check_saved_activations(names)
