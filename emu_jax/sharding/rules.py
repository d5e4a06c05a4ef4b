"""Map each logical axis to mesh axes. Mesh axis names appear only here, in `mesh.py` and in `configs/`."""

from emu_jax.sharding import axes

DATA = "data"
FSDP = "fsdp"
TENSOR = "tensor"
MESH_AXES = (DATA, FSDP, TENSOR)

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

# Kernels are sharded over `fsdp` on the embed side (ZeRO-3) and over `tensor` on the other side (Megatron). The batch
# is sharded over `data` and `fsdp` together. Every name in axes.py has a row; None means not sharded.
DEFAULT_RULES: Rules = (
    (axes.EMBED, FSDP),
    (axes.EMBED_IN, TENSOR),
    (axes.MLP, TENSOR),
    (axes.HEADS, TENSOR),
    (axes.KV_HEADS, TENSOR),
    (axes.KV, None),
    (axes.QKV, None),
    (axes.VOCAB, TENSOR),
    (axes.LAYERS, None),
    (axes.PATCH, None),
    (axes.POSITIONS, None),
    (axes.RELPOS_BUCKETS, None),
    (axes.QUERIES, None),
    (axes.NORM, None),
    (axes.CONV_IN, FSDP),
    (axes.CONV_OUT, TENSOR),
    (axes.TIME_EMBED, None),
    (axes.LORA_RANK, None),
    (axes.ACT_BATCH, (DATA, FSDP)),
    (axes.ACT_LENGTH, None),
    (axes.ACT_EMBED, None),
    (axes.ACT_MLP, TENSOR),
    (axes.ACT_HEADS, TENSOR),
    (axes.ACT_KV, None),
    (axes.ACT_VOCAB, TENSOR),
    (axes.ACT_HEIGHT, None),
    (axes.ACT_WIDTH, None),
    (axes.ACT_CHANNELS, None),
)
