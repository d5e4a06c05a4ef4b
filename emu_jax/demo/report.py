"""report.html of an evaluation on the synthetic world: scores, samples, and the training runs behind the model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emu_jax.demo.examples import OPTIONS, Sample
from emu_jax.demo.runner import Evaluation, format_interval, format_score
from emu_jax.demo.world.grammar import normalize
from emu_jax.reporting.about import about_sections, footer
from emu_jax.reporting.page import Section, card, cards, details, escape, image_row, table, write_page
from emu_jax.reporting.training_run import Records, run_sections

# Titles of the scores in the main table; the other scores are folded.
MAIN_SCORES = {
    "caption_exact": "Captions of one object, exact match",
    "caption_exact_held_out": "… of held-out combinations",
    "caption_exact_two_objects": "Captions of two objects",
    "caption_exact_three_objects": "Captions of three objects",
    "vqa_accuracy": "Questions about color, shape and location",
    "vqa_accuracy_by_kind/how many": "Questions about the count",
    "text_to_image_color_and_shape": "Text to image: color and shape correct",
    "text_to_image_color_and_shape_held_out": "… of held-out combinations",
    "in_context_accuracy": "The object of image 1 in the color of image 2",
    "video_direction_accuracy": "Direction of motion in a video",
    "classifier_accuracy": "The rule-based classifier on rendered images",
    "visual_embedding_variance": "Variance of the visual embeddings",
}
_UNFOLDED = 12  # samples of a section
_MAX_CHARACTERS = 300  # of an answer
_WORDS = {option.value for options in OPTIONS.values() for option in options}
_WORD = re.compile(r"\b(" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r")\b")


def write_evaluation_report(
    path: Path,
    evaluation: Evaluation,
    *,
    title: str,
    lead: str,
    runs: Sequence[tuple[str, Records]] = (),
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the page of an evaluation, followed by the training runs (title, records of metrics.jsonl)."""
    times = {f"Evaluation: {name}": f"{seconds:.1f} s" for name, seconds in evaluation.seconds.items()}
    sections = [
        *evaluation_sections(evaluation),
        *run_sections(runs),
        *about_sections(config=config, facts=times | dict(facts or {})),
    ]
    write_page(path, sections, title=title, lead=lead, footer=footer())


def evaluation_sections(evaluation: Evaluation) -> list[Section]:
    """Return the scores and the samples; a section without samples has an empty body."""
    found = evaluation.samples
    two, three = (found.get(f"captions_{number}_objects", []) for number in ("two", "three"))
    several = [sample for pair in zip(two, three, strict=False) for sample in pair]
    return [
        Section(
            "Scores",
            _scores(evaluation),
            "On scenes sampled for this evaluation; half of them have a combination of color, shape and location that "
            "is held out of training. The intervals are bootstrap intervals over the scenes.",
        ),
        Section(
            "Captions", _captions(found.get("captions", [])) + _subsection("Two and three objects", _captions(several))
        ),
        Section("Questions and answers", _questions(found.get("questions", []))),
        Section(
            "Text to image",
            _generated_images(found.get("text_to_image", [])),
            "Embeddings predicted from the prompt, decoded by the visual decoder, graded by the rule-based classifier.",
        ),
        Section(
            "In context",
            _in_context(found.get("in_context", [])),
            "Prompt: the object of image 1 in the color of image 2.",
        ),
        Section("Blending", _image_pairs(found.get("blending", []), sign="+"), "Two images, and the generated one."),
        Section("Videos", _videos(found.get("videos", [])), "The direction of motion, in a description of the video."),
        Section(
            "Autoencoding",
            _image_pairs(found.get("autoencoding", []), sign=""),
            "An image, and the same image after the encoder and the visual decoder.",
        ),
    ]


def _scores(evaluation: Evaluation) -> str:
    main = {name: title for name, title in MAIN_SCORES.items() if name in evaluation.scores}
    rest = {name: name for name in evaluation.scores if name not in main}
    return _score_table(evaluation, main) + details("All scores", _score_table(evaluation, rest) if rest else "")


def _score_table(evaluation: Evaluation, titles: Mapping[str, str]) -> str:
    rows = []
    for name, title in titles.items():
        score, other = evaluation.scores[name], evaluation.untrained.get(name)
        value = format_score(name, score.value)
        bar = f'<td class="bar" style="--fraction: {100 * score.value:.1f}%">{value}</td>'
        rows.append(
            [
                f"<th>{escape(title)}</th>",
                f"<td>{value}</td>" if score.chance is None else bar,
                format_interval(name, score) or "–",
                "–" if other is None else format_score(name, other.value),
                "–" if score.chance is None else format_score(name, score.chance),
                str(score.count),
            ]
        )
    return table(("", "trained", "95% interval", "untrained", "chance", "scenes"), rows) if rows else ""


def _captions(samples: Sequence[Sample]) -> str:
    return _folded(
        card(
            image_row(sample.images),
            f"<p>{_verdict(sample)}{_marked(_text(sample), sample.expected)}</p>",
            _expected(sample),
            correct=sample.correct,
        )
        for sample in samples
    )


def _questions(samples: Sequence[Sample]) -> str:
    return _folded(
        card(
            image_row(sample.images),
            f"<p>{escape(sample.prompt)}</p>",
            f"<p>{_verdict(sample)}<b>{escape(_text(sample)) or '(nothing)'}</b></p>",
            _expected(sample),
            correct=sample.correct,
        )
        for sample in samples
    )


def _videos(samples: Sequence[Sample]) -> str:
    return _folded(
        (
            card(
                image_row(sample.images, css_class="video"),
                f"<p>{_verdict(sample)}{escape(_text(sample)) or '(nothing)'}</p>",
                _expected(sample),
                correct=sample.correct,
            )
            for sample in samples
        ),
        min_width="17rem",
    )


def _generated_images(samples: Sequence[Sample]) -> str:
    return _folded(
        card(
            image_row([_image(sample)]),
            f"<p>{escape(sample.prompt)}</p>",
            _detected(sample),
            correct=sample.correct,
        )
        for sample in samples
    )


def _in_context(samples: Sequence[Sample]) -> str:
    return _folded(
        (
            card(
                image_row([*sample.images, "→", _image(sample)]),
                f"<p>expected: {escape(sample.expected)}</p>",
                _detected(sample),
                correct=sample.correct,
            )
            for sample in samples
        ),
        min_width="17rem",
    )


def _image_pairs(samples: Sequence[Sample], *, sign: str) -> str:
    items = []
    for sample in samples:
        row: list[np.ndarray | str] = [sample.images[0]]
        for image in sample.images[1:]:
            row += [sign, image]
        items.append(card(image_row([*row, "→", _image(sample)]), _detected(sample), correct=sample.correct))
    return _folded(items, min_width="17rem" if sign else "13rem")


def _folded(items: Iterable[str], *, min_width: str = "10.5rem") -> str:
    """Return the first cards, and the rest folded."""
    all_cards = list(items)
    rest = all_cards[_UNFOLDED:]
    return cards(all_cards[:_UNFOLDED], min_width=min_width) + details(
        f"{len(rest)} more", cards(rest, min_width=min_width)
    )


def _expected(sample: Sample) -> str:
    return "" if sample.correct else f"<p><small>expected: {escape(sample.expected)}</small></p>"


def _detected(sample: Sample) -> str:
    return f"<p><small>{_verdict(sample)}detected: {escape(sample.detected)}</small></p>"


def _verdict(sample: Sample) -> str:
    if sample.correct is None:
        return ""
    return f'<span class="verdict">{"✓ correct" if sample.correct else "✗ wrong"}</span> · '


def _marked(text: str, expected: str) -> str:
    """Return the caption as HTML with its wrong attributes marked."""
    correct = set(_WORD.findall(normalize(expected)))
    if not text:
        return "(nothing)"
    return _WORD.sub(lambda m: m[0] if m[0] in correct else f'<span class="error">{m[0]}</span>', escape(text))


def _text(sample: Sample) -> str:
    assert isinstance(sample.answer, str)
    return sample.answer if len(sample.answer) <= _MAX_CHARACTERS else sample.answer[:_MAX_CHARACTERS] + " …"


def _image(sample: Sample) -> np.ndarray:
    assert isinstance(sample.answer, np.ndarray)
    return sample.answer


def _subsection(title: str, body: str) -> str:
    return f"<h3>{escape(title)}</h3>{body}" if body else ""
