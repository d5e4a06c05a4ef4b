"""Readers for published data set layouts, by name."""

from emu_jax.data.sources.chats import ALPACA, LLAVA, SHAREGPT, VIDEOCHAT
from emu_jax.data.sources.coco_captions import COCO_CAPTIONS, COCO_KARPATHY
from emu_jax.data.sources.image_text_pairs import PAIRS, PAIRS_PARQUET
from emu_jax.data.sources.jsonl_documents import JSONL
from emu_jax.data.sources.preferences import PREFERENCES
from emu_jax.data.sources.source import Found, Outcome, ReadOptions, Rejected, Source
from emu_jax.data.sources.storyboards import STORYBOARD
from emu_jax.data.sources.visual_questions import OKVQA, VISDIAL, VIZWIZ, VQAV2
from emu_jax.data.sources.web_pages import MMC4, OBELICS
from emu_jax.data.sources.webvid import WEBVID

_PRETRAINING = (PAIRS, PAIRS_PARQUET, MMC4, OBELICS, WEBVID, STORYBOARD)
_INSTRUCTION = (LLAVA, SHAREGPT, ALPACA, VIDEOCHAT, COCO_KARPATHY, COCO_CAPTIONS, VQAV2, OKVQA, VIZWIZ, VISDIAL)

SOURCES: dict[str, Source] = {source.name: source for source in (*_PRETRAINING, *_INSTRUCTION, PREFERENCES, JSONL)}

__all__ = ["SOURCES", "Found", "Outcome", "ReadOptions", "Rejected", "Source"]
