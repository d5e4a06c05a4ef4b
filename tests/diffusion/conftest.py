"""The reference case of the visual decoder, read once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from emu_jax.convert.visual_decoder import load_visual_decoder
from emu_jax.diffusion.decoder import VisualDecoder


@pytest.fixture(scope="session")
def reference_folder(shared_dir: Path) -> Path:
    return shared_dir / "reference" / "visual_decoder_tiny"


@pytest.fixture(scope="session")
def reference_decoder(reference_folder: Path) -> VisualDecoder:
    return load_visual_decoder(reference_folder)


@pytest.fixture(scope="session")
def expected(reference_folder: Path) -> Mapping[str, np.ndarray]:
    """Arrays that diffusers computed. Images are channels-first, except `pndm_image`."""
    with np.load(reference_folder / "expected.npz") as arrays:
        return dict(arrays)
