"""What a run does otherwise on one generation of TPUs than on another."""

import dataclasses

from emu_jax.models.config import check_saved_activations

# Sums of gradients and one-dimensional gathers on the SparseCores, beside the products: without them a v5p waits for
# each (experiments/records/compile_v5p.md). Of Google's recipe for v5p, AI-Hypercomputer/tpu-recipes on GitHub,
# training/v5p/DeepSeek3-671B-MaxText, less what is there for profiles and what libtpu no longer knows.
SPARSE_CORE_COLLECTIVES = (
    "xla_tpu_enable_sparse_core_collective_offload_all_gather=true",
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce=true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter=true",
    # What the three above want: arrays laid out as the TensorCore has them, and one SparseCore program for a chip.
    "xla_tpu_use_tc_device_shape_on_sc=true",
    "xla_sc_enable_instruction_fusion=false",
    "xla_sc_disable_megacore_partitioning=true",
)


# A kernel is gathered whole before its product. Otherwise XLA passes the parts of some around a ring, with a product
# for each: the U-Net's step became 700 loops and twice as long (experiments/records/compile_visual_decoder.md).
GATHERED_KERNELS = ("xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",)


@dataclasses.dataclass(frozen=True)
class ChipConfig:
    """How much a layer keeps for the backward pass, by the memory that a chip has, and what its compiler is told.

    Attributes:
      name: of the generation, such as "v5e".
      vision: takes the place of `model.vision.saved_activations`, which holds on any other chip.
      causal_former: likewise.
      decoder: likewise.
      compiler_options: stand before `train.compiler_options`.
    """

    name: str
    vision: tuple[str, ...] = ()
    causal_former: tuple[str, ...] = ()
    decoder: tuple[str, ...] = ()
    compiler_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for names in (self.vision, self.causal_former, self.decoder):
            check_saved_activations(names)
