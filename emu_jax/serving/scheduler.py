"""Which kind of work the device does next: each kind that has work gets the same device time."""

import enum
from collections.abc import Collection


class Work(enum.Enum):
    """Kinds of device work, done one unit at a time."""

    PREFILL = "prefill"  # one batch of images through the vision encoder, or one chunk of a prompt
    DECODE = "decode"  # a few tokens of every running answer
    BEAMS = "beams"  # a few steps of the beam search
    IMAGES = "images"  # a few U-Net calls, or one image through the autoencoder


class FairClock:
    """Start-time fair queueing: the kind that has used the least device time is next.

    A kind without work saves nothing up: when it has work again it starts level with the others.
    """

    def __init__(self) -> None:
        self._used = dict.fromkeys(Work, 0.0)
        self._ready: set[Work] = set()

    def choose(self, ready: Collection[Work]) -> Work | None:
        """Return the kind to do next, None where there is no work."""
        continuing = [self._used[work] for work in self._ready & set(ready)]
        level = min(continuing) if continuing else max(self._used.values())
        for work in set(ready) - self._ready:
            self._used[work] = max(self._used[work], level)
        self._ready = set(ready)
        return min(ready, key=lambda work: (self._used[work], work.value), default=None)

    def charge(self, work: Work, seconds: float) -> None:
        """Add device time to a kind."""
        self._used[work] += seconds
