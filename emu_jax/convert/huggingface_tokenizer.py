"""Convert a SentencePiece model with Emu's special tokens to the JSON files of transformers' AutoTokenizer."""

from pathlib import Path
from typing import Any

import sentencepiece

from emu_jax.data.tokenizer import fitting_tokenizer

# As in the training of the release: white space next to a special token is removed, and each text between special
# tokens is encoded separately.
_TREATMENT = {"single_word": False, "lstrip": True, "rstrip": True, "normalized": False}
_SPECIAL = {**_TREATMENT, "special": True}


def tokenizer_files(model: Path, *, vocab_size: int, max_length: int) -> dict[str, Any]:
    """Return the JSON values by file name, for transformers 4 and 5.

    Args:
      model: a SentencePiece byte-pair model.
      vocab_size: of the Emu; it determines the special tokens.
      max_length: maximum number of tokens of the Emu.

    Raises:
      UserError: the model does not fit the vocabulary.
    """
    tokenizer = fitting_tokenizer(model, vocab_size=vocab_size)
    unknown, start, end = map(tokenizer.piece, (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id))
    added = {tokenizer.piece(number): number for number in range(tokenizer.pad_id, vocab_size)}
    pad, *others = added
    named = {"bos_token": start, "eos_token": end, "unk_token": unknown, "pad_token": pad}
    special = {unknown: tokenizer.unk_id, start: tokenizer.bos_id, end: tokenizer.eos_id} | added
    return {
        "tokenizer.json": _tokenizer_json(sentencepiece.SentencePieceProcessor(model_file=str(model)), special, named),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",  # uses tokenizer.json unchanged; LlamaTokenizer rebuilds it
            "added_tokens_decoder": {str(number): {"content": text, **_SPECIAL} for text, number in special.items()},
            "additional_special_tokens": others,
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": max_length,
            "padding_side": "left",
            **named,
        },
        # Before 4.34, transformers adds the tokens of this file again, so it has their treatment of white space too.
        "special_tokens_map.json": {
            **{name: {"content": text, **_TREATMENT} for name, text in named.items()},
            "additional_special_tokens": [{"content": text, **_TREATMENT} for text in others],
        },
        "added_tokens.json": added,  # for the LlamaTokenizer of transformers 4, which reads tokenizer.model
    }


def _tokenizer_json(
    pieces: sentencepiece.SentencePieceProcessor, special: dict[str, int], named: dict[str, str]
) -> dict[str, Any]:
    start, space = named["bos_token"], {"String": " "}
    first: dict[str, Any] = {"SpecialToken": {"id": start, "type_id": 0}}
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    second: dict[str, Any] = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": content, **_SPECIAL} for content, number in special.items()],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": space, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, second],
            "special_tokens": {start: {"id": start, "ids": [special[start]], "tokens": [start]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": named["unk_token"],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())},
            "merges": _merges(pieces),
        },
    }


def _merges(pieces: sentencepiece.SentencePieceProcessor) -> list[str]:
    """Return the pairs of pieces that merge to a piece, best first. SentencePiece stores only the scores of pieces.

    abc (-2), ab (-1), bc (-3)  ->  a b, ab c, a bc, b c
    """
    scores = {
        pieces.id_to_piece(i): pieces.get_score(i)
        for i in range(pieces.vocab_size())
        if not (pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_byte(i) or pieces.is_unused(i))
    }
    pairs = [
        (score, split, piece)
        for piece, score in scores.items()
        for split in range(1, len(piece))
        if piece[:split] in scores and piece[split:] in scores
    ]
    pairs.sort(key=lambda pair: (-pair[0], -pair[1]))
    return [f"{piece[:split]} {piece[split:]}" for _, split, piece in pairs]
