"""Slots of the KV cache: which are free, and which prompt prefix each one still holds."""

import hashlib
from collections.abc import Sequence

import numpy as np

from emu_jax.generation.prompt import Prompt

Chain = tuple[bytes, ...]  # one digest per complete chunk; each covers everything before it


def image_digest(pixels: np.ndarray) -> bytes:
    """Return a digest that identifies a preprocessed image."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=16).digest()


def prefix_chain(
    prompt: Prompt, digests: Sequence[bytes], *, model: str, chunk: int, image_token_id: int, num_image_tokens: int
) -> Chain:
    """Return the digests of a prompt's complete chunks.

    The last token is left out: it is decoded, not prefilled. Prefixes are reused chunk by chunk, so that a reused
    chunk holds the bits that computing it again would give.
    """
    tokens = prompt.tokens[:-1]
    is_image = tokens == image_token_id
    image = (np.cumsum(is_image) - 1) // num_image_tokens
    digest = model.encode()
    chain = []
    for start in range(0, len(tokens) - chunk + 1, chunk):
        part = slice(start, start + chunk)
        content = hashlib.blake2b(digest, digest_size=16)
        content.update(tokens[part].astype(np.int32).tobytes())
        for index in np.unique(image[part][is_image[part]]):
            content.update(digests[index])
        digest = content.digest()
        chain.append(digest)
    return tuple(chain)


class Slots:
    """The free slots, each with the chunks that its cache still holds; the engine's thread only."""

    def __init__(self, count: int) -> None:
        self._cached: list[Chain] = [()] * count
        self._free = list(range(count))  # the least recently used first

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, chain: Chain) -> tuple[int, int]:
        """Take the free slot that shares the longest prefix with `chain`; return it and the shared chunks.

        Where none shares a chunk, the least recently used slot is taken.
        """
        shared = {slot: _common(self._cached[slot], chain) for slot in self._free}
        slot = max(self._free, key=lambda slot: shared[slot])  # the first of the best
        self._free.remove(slot)
        self._cached[slot] = ()
        return slot, shared[slot]

    def release(self, slot: int, chain: Chain = ()) -> None:
        """Free a slot whose cache holds the chunks of `chain`; none after an answer that was aborted."""
        self._cached[slot] = chain
        self._free.append(slot)


def _common(first: Chain, second: Chain) -> int:
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count
