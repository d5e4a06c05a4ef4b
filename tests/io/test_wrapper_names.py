"""Prefixes that training programs add to tensor names."""

import itertools

import numpy as np
import pytest

from emu_jax.convert.sources import open_sources
from emu_jax.errors import UserError
from tests.convert.release import random_state, small_config, write_state

EMU = random_state(small_config())
LLAMA = {
    n.removeprefix("decoder.lm."): a for n, a in EMU.items() if n.startswith(("decoder.lm.model", "decoder.lm.lm_"))
}
EVA = {n.removeprefix("visual."): a for n, a in EMU.items() if n.startswith("visual.")}
PREFIXES = [
    "".join(words) for n in (1, 2, 3) for words in itertools.permutations(("module.", "_orig_mod.", "model."), n)
]


@pytest.mark.parametrize("prefix", ["", *PREFIXES, "model.model.", "_forward_module.", "model._orig_mod.model."])
def test_any_nesting_of_prefixes_is_removed(tmp_path, prefix):
    for name, state, expected in (
        ("emu", EMU, set(EMU)),
        ("llama", LLAMA, {f"decoder.lm.{n}" for n in LLAMA}),
        ("eva", EVA, {f"visual.{n}" for n in EVA}),
    ):
        write_state(tmp_path / name, {prefix + n: a for n, a in state.items()})
        opened = open_sources([tmp_path / name])
        assert opened.tensors.keys() == expected
        assert len(opened.notes) == (prefix != "")


def test_wrappers_inside_a_name_are_removed(tmp_path):
    names = {
        "visual.blocks.0._checkpoint_wrapped_module.norm1.weight": "visual.blocks.0.norm1.weight",
        "decoder.lm._orig_mod.model.norm.weight": "decoder.lm.model.norm.weight",
        "cformer.module.causal_tokens": "cformer.causal_tokens",
        "_fsdp_wrapped_module.decoder._fsdp_wrapped_module.lm.lm_head.weight": "decoder.lm.lm_head.weight",
    }
    write_state(tmp_path, {name: np.zeros(1, np.float32) for name in names})
    assert open_sources([tmp_path]).tensors.keys() == set(names.values())


def test_one_tensor_with_and_without_a_wrapper_is_refused(tmp_path):
    write_state(tmp_path, {n: np.zeros(1, np.float32) for n in ("module.visual.cls_token", "visual.cls_token")})
    with pytest.raises(UserError, match="without their wrappers"):
        open_sources([tmp_path])
