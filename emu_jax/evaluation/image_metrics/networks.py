"""The networks that score generated images, read at first use."""

import dataclasses
import functools
from pathlib import Path

from emu_jax.bounds import Checked, Count
from emu_jax.evaluation.image_metrics.clip import Clip
from emu_jax.evaluation.image_metrics.fid import Fid
from emu_jax.evaluation.image_metrics.resize import Resize


@dataclasses.dataclass(frozen=True)
class ImageNetworks(Checked):
    """Paths of weights, and how images are resized.

    Attributes:
      inception: file `pt_inception-2015-12-05-*.pth`; None leaves FID out.
      clip: folder of a CLIP in the layout of transformers; None leaves CLIP scores out.
      resize: to Inception's size.
      rows: images that go through Inception at a time.
      reference: .npz file of FID statistics to compare with; None: the benchmark's own images.
    """

    inception: Path | None = None
    clip: Path | None = None
    resize: Resize = Resize.CLEAN
    reference: Path | None = None
    rows: Count = 32

    def load_fid(self) -> Fid | None:
        """Return the FID network; None without one."""
        return None if self.inception is None else _fid(self.inception, self.resize, self.rows)

    def load_clip(self) -> Clip | None:
        """Return the CLIP; None without one."""
        return None if self.clip is None else _clip(self.clip)


@functools.lru_cache(maxsize=2)
def _fid(path: Path, resize: Resize, rows: int) -> Fid:
    return Fid(path, resize=resize, rows=rows)


@functools.lru_cache(maxsize=2)
def _clip(path: Path) -> Clip:
    return Clip(path)
