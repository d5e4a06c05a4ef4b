"""A WordNet of a few nouns in WordNet 3.0's file format, for nltk."""

from __future__ import annotations

from pathlib import Path

# word -> its hypernym
_NOUNS = {
    "entity": None,
    "animal": "entity",
    "dog": "animal",
    "cat": "animal",
    "artifact": "entity",
    "table": "artifact",
    "chair": "artifact",
}
_LEXNAMES = "".join(f"{n:02d}\tnoun.{n}\t1\n" for n in range(45))


def write_wordnet(folder: Path) -> Path:
    """Write `corpora/wordnet` under `folder`, which NLTK_DATA may then name."""
    corpus = folder / "corpora" / "wordnet"
    corpus.mkdir(parents=True)
    offsets = dict.fromkeys(_NOUNS, 0)
    for _ in range(2):  # offsets have a fixed width, so the second pass writes the right ones
        data, position = "", 0
        for word, parent in _NOUNS.items():
            offsets[word] = position
            pointers = [f"@ {offsets[parent]:08d} n 0000"] if parent else []
            pointers += [f"~ {offsets[child]:08d} n 0000" for child, above in _NOUNS.items() if above == word]
            line = f"{position:08d} 03 n 01 {word} 0 {len(pointers):03d} {' '.join(pointers)} | {word}  \n"
            data += line
            position += len(line)
    (corpus / "data.noun").write_text(data)
    index = ""
    for word, parent in sorted(_NOUNS.items()):
        symbols = (["@"] if parent else []) + (["~"] if word in _NOUNS.values() else [])
        index += f"{word} n 1 {len(symbols)} {' '.join(symbols)} 1 0 {offsets[word]:08d}  \n"
    (corpus / "index.noun").write_text(index)
    senses = [f"{word}%1:03:00:: {offsets[word]:08d} 1 0\n" for word in sorted(_NOUNS)]
    (corpus / "index.sense").write_text("".join(senses))
    for part in ("verb", "adj", "adv"):
        (corpus / f"data.{part}").write_text("")
        (corpus / f"index.{part}").write_text("")
    for part in ("noun", "verb", "adj", "adv"):
        (corpus / f"{part}.exc").write_text("mice mouse\n" if part == "noun" else "")
    (corpus / "lexnames").write_text(_LEXNAMES)
    return folder
