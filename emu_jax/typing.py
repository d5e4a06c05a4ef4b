"""Shape annotations, checked when a function is called. Under `jit` they are checked only while tracing.

The letters are the same in annotations, einsums and comments:

    B batch            L length           T, S query and key length    D embed
    N heads            K kv heads         H head dim                   M mlp
    V vocab            I images per row   Q image tokens per image     P patches (and class token)
    C channels         n images, flattened over rows
"""

import numpy as np
from beartype import beartype
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt8, jaxtyped

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "PyTree", "Shaped", "UInt8", "typechecked"]

ArrayLike = Array | np.ndarray  # inputs of a model's public methods


def typechecked(function):
    """Check the annotated shapes and types at every call of `function`."""
    return jaxtyped(typechecker=beartype)(function)
