"""Retired words stay out of the package, its help texts, the configs and the documentation.

`RETIRED` names a plain term for each retired word. Where a retired word is right, `ALLOWED` lists it with its file.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Pattern of complete words -> term to use instead. Case does not matter, and a space also matches a line break.
# Identifiers are split into words first: `picture_size` and `PictureSize` match like "picture size".
RETIRED = {
    # Private words.
    r"(?<!in[\s-])(?<!decimal\s)places?": "position, token; of images: pixel, location",
    r"pictures?": "image",
    r"films?": "video, clip",
    r"paint\w*": "visual decoder, decode, generate images",
    r"drawn worlds?": "synthetic shapes world",
    r"pixel readers?": "rule-based classifier",
    r"judg(e|es|ed|ing)": "grader, grade",
    r"whole": "full, complete, entire; of sharding: replicated",
    r"cuts?|cutting": "split, sharded, truncated, cropped",
    r"lies|laid": "is stored, is; laid out: with the layout",
    r"stands?(?! for)": "is",
    r"kept": "saved, stored",
    r"apart(?! from)": "separately",
    r"shares? of|(final|cooldown|warmup) share": "fraction of, ratio of",
    r"matrix products?|products? of matrices": "matmul",
    r"sums? of gradients": "gradient all-reduce",
    r"waited for": "exposed",
    r"(?<!\.)tells?|told": "reports, passes, says",
    r"wants?|wanted": "requires, expects, requested",
    r"goes on|go on|going on": "resumes, continues",
    r"beside": "next to, with",
    r"anew|afresh": "again",
    r"for ever|forever": "indefinitely",
    r"comes? in|goes out|go out": "is imported, is exported",
    r"fates?": "outcome",
    r"guilty": "failing",
    r"borne": "tolerated",
    r"mend(s|ed|ing)?": "fix",
    r"strangers?": "untrusted input",
    r"habits?": "settings",
    r"remedy|remedies": "mitigation",
    r"much =": "a named constant",
    r"why (=|\()": "explain_failure, reason",
    r"rooms?(?! for)|floors|house": "package, layer, codebase; of a cache: capacity",
    r"front doors?": "entry point",
    r"seams?": "interface",
    r"manners?": "conventions",
    r"reckon(s|ed|ing)?": "estimate, compute",
    r"foretell(s|ing)?|foretold": "predict",
    r"in little|in small": "small-scale",
    r"all well": "OK",
    # Archaic and literary words.
    r"ere|lest|thereby|henceforth|hence forth|whence|thence|thereof|whereby|(?<!once\s)upon|amid|naught": "plain words",
    r"but for": "except",
    r"alone": "only",
    r"of its own|of their own": "its own, separate",
    r"in hand|at hand": "available",
    r"by itself": "alone, separately",
    r"held to": "limited to, compared with",
    r"asked for": "requested, passed",
    r"as \w+ ha(s|ve) (it|them)": "as in, like",
    r"it is for \w+ to": "must",
    r"of another kind": "another",
    # Units.
    r"(\w*bytes|tokens|images|steps|operations|cycles|rows|requests|[kMG]i?B|GB/s) an? "
    r"(second|chip|device|step|row|image)": "per second, per chip, per device",
    # British spelling.
    r"colour\w*": "color",
    r"cent(re|red|res|ring)": "center",
    r"(normal|initial|optim|organ|recogn|serial|quant|synchron|token|material|parallel|general|visual|regular|minim|maxim|"
    r"summar|categor|memor|special|raster|vector)is(e|ed|es|er|ers|ing|ation|ations)": "-ize",
    r"(behaviour|neighbour|favour|honour)\w*": "-or",
    r"labelled|labelling|modelling|cancelled|cancelling|travelled|artefacts?|analys(e|ed|es|ing)|grey|fulfil|licence": (
        "American spelling"
    ),
    r"learnt|misspelt|spelt|burnt|whilst|amongst": "learned, misspelled, ..., while, among",
}

# File -> the retired words that are right there.
ALLOWED = {
    # the flag --judge-base-url
    "emu_jax/cli/evaluate.py": {"judge"},
    "emu_jax/cli/evaluation_output.py": {"judge"},
    "emu_jax/evaluation/tasks/mmvet.py": {"judge"},
    "docs/how-to/evaluation.md": {"judge"},
    "emu_jax/config.py": {"kept", "final share", "cooldown share", "pictures"},  # old names of config fields
    "emu_jax/demo/examples.py": {"films", "pixel reader"},  # old task names, which seed the scenes
    # Texts of the synthetic data sets.
    "emu_jax/demo/world/alt_text.py": {"picture", "pictures"},
    "emu_jax/demo/world/questions.py": {"picture"},
    "emu_jax/demo/world/stories.py": {"picture", "pictures", "tell"},
}

AREAS = {
    **{f"emu_jax/{path.name}": [path] for path in sorted((ROOT / "emu_jax").iterdir()) if path.name != "__pycache__"},
    "configs": [ROOT / "configs"],
    "docs": [ROOT / "docs"],
    "front matter": [ROOT / "README.md", ROOT / "CONTRIBUTING.md"],
}

# First words of docstrings that should be imperative: "Return ...", "Read ...".
OPENINGS = ("What", "Whether", "Where", "How", "Why", "Who")
THIRD_PERSON = re.compile(
    "Adds|Begins|Builds|Calls|Checks|Compiles|Computes|Counts|Creates|Decodes|Draws|Ends|Finds|Gives|Keeps|Lists|Loads|"
    "Looks|Makes|Opens|Parses|Prints|Puts|Raises|Reads|Removes|Returns|Runs|Saves|Sends|Sets|Shows|Splits|Starts|Stops|"
    "Takes|Tells|Turns|Waits|Writes|Yields"
)


def compiled(pattern: str) -> re.Pattern[str]:
    spaced = pattern.replace(" ", r"[\s#]+")
    return re.compile(rf"(?<![A-Za-z])(?:{spaced})(?![A-Za-z])", re.IGNORECASE)


PATTERNS = {compiled(pattern): instead for pattern, instead in RETIRED.items()}


def retired_words(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, word, term to use instead) for each retired word in `text`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text).replace("_", " ")
    for pattern, instead in PATTERNS.items():
        for match in pattern.finditer(words):
            word = re.sub(r"[\s#]+", " ", match.group()).lower()
            yield words.count("\n", 0, match.start()) + 1, word, instead


def files(area: str) -> list[Path]:
    found = (sorted(path.rglob("*")) if path.is_dir() else [path] for path in AREAS[area])
    return [path for paths in found for path in paths if path.suffix in (".py", ".md")]


@pytest.mark.parametrize("area", AREAS)
def test_no_retired_words(area: str) -> None:
    wrong = []
    for path in files(area):
        name = str(path.relative_to(ROOT))
        allowed = ALLOWED.get(name, set())
        found = sorted(retired_words(path.read_text(encoding="utf-8")))
        wrong += [f"{name}:{line}: {word} -> {instead}" for line, word, instead in found if word not in allowed]
    if wrong:
        pytest.fail(f"{len(wrong)} retired words\n" + "\n".join(wrong), pytrace=False)


def docstrings(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, first word, is of a function) for each docstring of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and text.strip():
                is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                yield getattr(node, "lineno", 1), re.split(r"\W", text.strip(), maxsplit=1)[0], is_function


@pytest.mark.parametrize("area", [area for area in AREAS if area.startswith(("emu_jax", "configs"))])
def test_docstrings_open_with_a_statement(area: str) -> None:
    """Docstrings begin with "Return ..." or a noun, not with "Returns ...", "What ..." or "Whether ..."."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {word} ..."
        for path in files(area)
        if path.suffix == ".py"
        for line, word, is_function in docstrings(path)
        if word in OPENINGS or (is_function and THIRD_PERSON.fullmatch(word))
    ]
    if wrong:
        pytest.fail(f"{len(wrong)} docstrings\n" + "\n".join(wrong), pytrace=False)


def test_every_exception_is_needed() -> None:
    unused = [
        f"{name}: {word}"
        for name, allowed in ALLOWED.items()
        for word in allowed - {word for _, word, _ in retired_words((ROOT / name).read_text(encoding="utf-8"))}
    ]
    assert unused == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("picture_size = PictureSize(whole=True)", ["picture", "picture", "whole"]),
        ("# the run goes\n# on, lest it stop", ["goes on", "lest"]),
        ("updated in place, to two decimal places, in-place", []),
        ("40 tokens a second", ["tokens a second"]),
        ("handle.tell(); itertools.product(a, b); a dot product", []),
        ("wholesome filming replaces", []),
        ("normalise the colours", ["colours", "normalise"]),
    ],
)
def test_words_are_matched_in_identifiers_and_across_lines(text: str, words: list[str]) -> None:
    assert sorted(word for _, word, _ in retired_words(text)) == sorted(words)


def test_lines_are_counted() -> None:
    assert list(retired_words("a\nb\n  picture")) == [(3, "picture", "image")]
