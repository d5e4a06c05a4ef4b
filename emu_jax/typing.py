"""Shape annotations, checked when a function is called (under `jit`: when it is traced, so they cost nothing later).

The letters, the same in annotations, einsums and comments:

    B batch            L length           T, S query and key length    D embed
    N heads            K kv heads         H head dim                   M mlp
    V vocab            I images per row   Q image tokens per image     P patches (and class token)
    C channels         n images of a flat list
"""

import numpy as np
from beartype import beartype
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt8, jaxtyped

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "PyTree", "Shaped", "UInt8", "typechecked"]

ArrayLike = Array | np.ndarray  # what a user may hand to a model


def typechecked(function):
    """Checks the annotated shapes and types of every call of `function`."""
    return jaxtyped(typechecker=beartype)(function)
