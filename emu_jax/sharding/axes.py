"""The names of all logical axes. Parameters and activations have separate names.

Modules name axes by these constants only: flax reads an unknown name as "not sharded", so a misspelled string would
replicate the array without an error.
"""

# Parameters.
EMBED = "embed"  # width of the residual stream: input or output side of a kernel
EMBED_IN = "embed_in"  # input side of a kernel whose output side is also EMBED
MLP = "mlp"
HEADS = "heads"
KV_HEADS = "kv_heads"
KV = "kv"  # within one head
QKV = "qkv"  # query, key, value of a fused kernel
VOCAB = "vocab"
LAYERS = "layers"  # stacking axis of scanned layers
PATCH = "patch"
POSITIONS = "positions"
RELPOS_BUCKETS = "relpos_buckets"
QUERIES = "queries"
NORM = "norm"
CONV_IN = "conv_in"
CONV_OUT = "conv_out"
TIME_EMBED = "time_embed"
LORA_RANK = "lora_rank"

# Activations.
ACT_BATCH = "act_batch"
ACT_LENGTH = "act_length"
ACT_EMBED = "act_embed"
ACT_MLP = "act_mlp"
ACT_HEADS = "act_heads"
ACT_KV = "act_kv"
ACT_VOCAB = "act_vocab"
ACT_HEIGHT = "act_height"
ACT_WIDTH = "act_width"
ACT_CHANNELS = "act_channels"

PARAMETER_AXES = (
    EMBED, EMBED_IN, MLP, HEADS, KV_HEADS, KV, QKV, VOCAB, LAYERS, PATCH, POSITIONS, RELPOS_BUCKETS, QUERIES, NORM,
    CONV_IN, CONV_OUT, TIME_EMBED, LORA_RANK,
)  # fmt: skip
ACTIVATION_AXES = (
    ACT_BATCH, ACT_LENGTH, ACT_EMBED, ACT_MLP, ACT_HEADS, ACT_KV, ACT_VOCAB, ACT_HEIGHT, ACT_WIDTH, ACT_CHANNELS,
)  # fmt: skip
