"""Readers for the layouts in which the real sets come, by name."""

from emu_jax.data.sources.base import Found, ReadOptions, Rejected, Source
from emu_jax.data.sources.captions import COCO_KARPATHY
from emu_jax.data.sources.chats import ALPACA, LLAVA, SHAREGPT, VIDEOCHAT
from emu_jax.data.sources.documents import JSONL
from emu_jax.data.sources.pages import MMC4, OBELICS
from emu_jax.data.sources.pairs import PAIRS, PAIRS_PARQUET
from emu_jax.data.sources.questions import OKVQA, VISDIAL, VIZWIZ, VQAV2
from emu_jax.data.sources.videos import STORYBOARD, WEBVID

_PRETRAINING = (PAIRS, PAIRS_PARQUET, MMC4, OBELICS, WEBVID, STORYBOARD)
_INSTRUCTION = (LLAVA, SHAREGPT, ALPACA, VIDEOCHAT, COCO_KARPATHY, VQAV2, OKVQA, VIZWIZ, VISDIAL)

SOURCES: dict[str, Source] = {source.name: source for source in (*_PRETRAINING, *_INSTRUCTION, JSONL)}

__all__ = ["SOURCES", "Found", "ReadOptions", "Rejected", "Source"]
