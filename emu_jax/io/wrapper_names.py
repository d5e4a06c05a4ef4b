"""Remove from tensor names what the wrappers of training programs add: `module.`, `_orig_mod.`, `model.`, ..."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from emu_jax.errors import UserError
from emu_jax.io.tensors import Tensor

# Modules that DDP, torch.compile, Fabric, FSDP and activation checkpointing put around another one, at any depth.
_WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_MODEL = "model."


def without_wrappers(tensors: Mapping[str, Tensor], own: re.Pattern[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors by their names without wrappers, and one line that lists what was removed.

    Wrappers are removed anywhere in a name. A leading `model.` is removed as long as names that match `own` follow it.

        _orig_mod.module.model.visual.cls_token  ->  visual.cls_token
        model.layers.0.mlp.up_proj.weight        ->  unchanged, as `layers.` does not match

    Raises:
      UserError: two tensors have the same name without their wrappers.
    """
    removed = {part for name in tensors for part in name.split(".") if part in _WRAPPERS}
    names = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in tensors}
    nested = re.compile(rf"(model\.)*(?:{own.pattern})")
    while any(nested.match(name.removeprefix(_MODEL)) for name in names.values() if name.startswith(_MODEL)):
        names = {old: name.removeprefix(_MODEL) for old, name in names.items()}
        removed.add("model")
    result: dict[str, Tensor] = {}
    for old, name in names.items():
        if name in result:
            raise UserError(f"{old} and {result[name].name} are the same tensor without their wrappers. Keep one.")
        result[name] = tensors[old]
    result = {name: dataclasses.replace(tensor, name=name) for name, tensor in result.items()}
    changed = sum(old != name for old, name in names.items())
    listed = ", ".join(f"{part}." for part in sorted(removed))
    return result, ((f"removed from {changed} names: {listed}",) if changed else ())
