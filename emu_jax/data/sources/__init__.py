"""Readers for the layouts in which the real sets come, by name."""

from emu_jax.data.sources.base import Found, ReadOptions, Rejected, Source
from emu_jax.data.sources.chats import ALPACA, LLAVA, SHAREGPT, VIDEOCHAT
from emu_jax.data.sources.pages import MMC4
from emu_jax.data.sources.pairs import PAIRS, PAIRS_PARQUET
from emu_jax.data.sources.videos import STORYBOARD, WEBVID

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (PAIRS, PAIRS_PARQUET, MMC4, WEBVID, STORYBOARD, LLAVA, SHAREGPT, ALPACA, VIDEOCHAT)
}

__all__ = ["SOURCES", "Found", "ReadOptions", "Rejected", "Source"]
