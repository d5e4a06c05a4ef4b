"""Name the activations that the backward pass may find saved instead of recomputed."""

QKV = "qkv"  # queries, keys and values as attention reads them
CONTEXT = "context"  # what attention read, and the normaliser of its softmax
ATTENTION_OUT = "attention_out"  # after the output projection
GATE = "gate"  # before the activation
UP = "up"  # before the activation of a plain MLP, the other factor of a gated one

NAMES = (QKV, CONTEXT, ATTENTION_OUT, GATE, UP)
