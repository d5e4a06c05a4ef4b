"""Names of activations that rematerialization can save for the backward pass instead of recomputing them."""

QKV = "qkv"  # queries, keys and values as inputs of attention
CONTEXT = "context"  # output of attention before the output projection, and the normalizer of its softmax
ATTENTION_OUT = "attention_out"  # output of the output projection
GATE = "gate"  # gate of a gated MLP, before the activation
UP = "up"  # hidden layer of an MLP before the activation; in a gated MLP, the factor without activation

NAMES = (QKV, CONTEXT, ATTENTION_OUT, GATE, UP)
