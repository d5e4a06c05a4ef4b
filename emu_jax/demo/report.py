"""report.html: what a run looked like, and what the model that came of it can do."""

import json
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from emu_jax.demo.examples import OPTIONS, Sample
from emu_jax.demo.runner import Evaluation, shown
from emu_jax.demo.world.grammar import normalize
from emu_jax.reporting.charts import Line, line_chart, number
from emu_jax.reporting.page import Section, card, cards, details, escape, pictures, table, write_report
from emu_jax.training.log import duration, read_metrics

# The scores that issue a verdict on the demo, as people call them; the others are folded away.
MAIN_SCORES = {
    "caption_exact": "Captions of one object, word for word",
    "caption_exact_held_out": "… of combinations never trained on",
    "caption_exact_two_objects": "Captions of two objects",
    "caption_exact_three_objects": "Captions of three objects",
    "vqa_accuracy": "Questions for color, shape and place",
    "vqa_accuracy_by_kind/how many": "Questions for how many",
    "text_to_image_color_and_shape": "Text to image: color and shape right",
    "text_to_image_color_and_shape_held_out": "… of combinations never trained on",
    "in_context_accuracy": "The object of image 1 in the color of image 2",
    "video_direction_accuracy": "Direction of motion in a film",
    "pixel_reader_accuracy": "The judge on true pictures",
    "visual_embedding_variance": "Variance of the visual embeddings",
}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_MONITORS = {
    "Embeddings: variance": ["visual_embedding_variance"],
    "Embeddings: mean cosine": ["visual_embedding_cosine"],
    "Embeddings: effective rank": ["visual_embedding_rank"],
    "Gradient norm": ["gradient_norm"],
    "Learning rate, share of its peak": ["learning_rate_share"],
    "Rows filled": ["fill/tokens", "fill/images"],
    "Waiting for data, share of the time": ["data_wait"],
    "Memory at its peak, GB": ["device_memory_gb", "host_memory_gb"],
    "MFU": ["mfu"],
}
_LOGARITHMIC = ("Loss", "Embeddings: variance", "Gradient norm", "Gradient norm by part", "Update norm by part")
_SHOWN = 12  # samples of a section before the fold
_WORDS = {option.value for options in OPTIONS.values() for option in options}
_WORD = re.compile(r"\b(" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r")\b")


def write_run_report(workdir: Path, *, config: Mapping[str, Any] | None = None) -> Path:
    """WORKDIR/report.html of any training run: curves, monitors, configuration, versions. Gives its path back."""
    workdir = Path(workdir)
    if config is None and (workdir / "config.json").is_file():
        config = json.loads((workdir / "config.json").read_text())
    sections = [*run_sections([(workdir.name, workdir)]), *about_sections(config=config)]
    path = workdir / "report.html"
    write_report(
        path, sections, title=f"Training run {workdir.name}", lead="How it went, step by step.", footer=_made()
    )
    return path


def write_evaluation_report(
    path: Path,
    evaluation: Evaluation,
    *,
    title: str,
    lead: str,
    runs: Sequence[tuple[str, Path]] = (),
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """The page of an evaluation, with the training runs behind it where they are named: (title, workdir)."""
    sections = [
        *evaluation_sections(evaluation),
        *run_sections(runs),
        *about_sections(config=config, facts=_times(evaluation) | dict(facts or {})),
    ]
    write_report(path, sections, title=title, lead=lead, footer=_made())


def evaluation_sections(evaluation: Evaluation) -> list[Section]:
    """Scores, and the samples behind them; a section for which there are no samples comes out empty."""
    found = evaluation.samples
    several = [s for pair in zip(*(found.get(f"captions_{n}_objects", []) for n in ("two", "three")), strict=False)
               for s in pair]  # fmt: skip
    return [
        Section("Scores", _scores(evaluation), "On scenes drawn for this evaluation, half of them with a combination "
                "of color, shape and place that training never showed."),
        Section("Captions", _captions(found.get("captions", []))
                + _titled("Two and three objects", _captions(several))),
        Section("Questions and answers", _questions(found.get("questions", []))),
        Section("Text to image", _made_pictures(found.get("text_to_image", [])),
                "Embeddings regressed from the prompt, painted by the diffusion decoder, judged by the pixel reader."),
        Section("In context", _in_context(found.get("in_context", [])),
                "Asked for: the object of image 1 in the color of image 2."),
        Section("Blending", _pairs(found.get("blending", []), sign="+"), "Two pictures, and what follows them."),
        Section("Films", _films(found.get("films", [])), "Which way does it move?"),
        Section("Autoencoding", _pairs(found.get("autoencoding", []), sign=""),
                "A picture, and the same through the encoder and the diffusion decoder."),
    ]  # fmt: skip


def run_sections(runs: Iterable[tuple[str, Path]]) -> list[Section]:
    """Loss curves, collapse monitors and speed of each run, from its metrics.jsonl."""
    return [Section(f"Training: {title}", _run(read_metrics(workdir))) for title, workdir in runs]


def about_sections(*, config: Mapping[str, Any] | None = None, facts: Mapping[str, str] | None = None) -> list[Section]:
    """The configuration, and facts (times, memory) before the versions."""
    versions = details("Versions", _facts(versions_used()), is_open=not facts)
    return [
        Section("Configuration", _config(config or {})),
        Section("Times and versions" if facts else "Versions", (_facts(facts) if facts else "") + versions),
    ]


def versions_used() -> dict[str, str]:
    """Python, the libraries that matter, and the machine; no device is touched."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {"Machine": f"{platform.system()} {platform.machine()}, {cores} cores"}


def _scores(evaluation: Evaluation) -> str:
    main = {name: title for name, title in MAIN_SCORES.items() if name in evaluation.scores}
    rest = {name: name for name in evaluation.scores if name not in main}
    return _score_table(evaluation, main) + details("All scores", _score_table(evaluation, rest) if rest else "")


def _score_table(evaluation: Evaluation, titles: Mapping[str, str]) -> str:
    rows = []
    for name, title in titles.items():
        score, other = evaluation.scores[name], evaluation.untrained.get(name)
        value = shown(name, score.value)
        bounded = score.chance is not None
        cell = (
            f'<td class="bar" style="--share: {100 * score.value:.1f}%">{value}</td>'
            if bounded
            else f"<td>{value}</td>"
        )
        rows.append(
            [
                f"<th>{escape(title)}</th>",
                cell,
                "–" if other is None else shown(name, other.value),
                "–" if score.chance is None else shown(name, score.chance),
                str(score.count),
            ]
        )
    return table(("", "trained", "untrained", "chance", "scenes"), rows) if rows else ""


def _captions(samples: Sequence[Sample]) -> str:
    return _folded(
        card(
            pictures(sample.shown),
            f"<p>{_verdict(sample)}{_marked(_text(sample), sample.wanted)}</p>",
            "" if sample.right else f"<p><small>right: {escape(sample.wanted)}</small></p>",
            right=sample.right,
        )
        for sample in samples
    )


def _questions(samples: Sequence[Sample]) -> str:
    return _folded(
        card(
            pictures(sample.shown),
            f"<p>{escape(sample.said)}</p>",
            f"<p>{_verdict(sample)}<b>{escape(_text(sample)) or '(nothing)'}</b></p>",
            "" if sample.right else f"<p><small>right: {escape(sample.wanted)}</small></p>",
            right=sample.right,
        )
        for sample in samples
    )


def _films(samples: Sequence[Sample]) -> str:
    return _folded(
        (
            card(
                pictures(sample.shown, kind="film"),
                f"<p>{_verdict(sample)}{escape(_text(sample)) or '(nothing)'}</p>",
                "" if sample.right else f"<p><small>right: {escape(sample.wanted)}</small></p>",
                right=sample.right,
            )
            for sample in samples
        ),
        least="17rem",
    )


def _made_pictures(samples: Sequence[Sample]) -> str:
    return _folded(
        card(pictures([_image(sample)]), f"<p>{escape(sample.said)}</p>", _reading(sample), right=sample.right)
        for sample in samples
    )


def _in_context(samples: Sequence[Sample]) -> str:
    return _folded(
        (
            card(
                pictures([*sample.shown, "→", _image(sample)]),
                f"<p>wanted: {escape(sample.wanted)}</p>",
                _reading(sample),
                right=sample.right,
            )
            for sample in samples
        ),
        least="17rem",
    )


def _pairs(samples: Sequence[Sample], *, sign: str) -> str:
    items = []
    for sample in samples:
        row: list[np.ndarray | str] = [sample.shown[0]]
        for image in sample.shown[1:]:
            row += [sign, image]
        items.append(card(pictures([*row, "→", _image(sample)]), _reading(sample), right=sample.right))
    return _folded(items, least="17rem" if sign else "13rem")


def _folded(items: Iterable[str], *, least: str = "10.5rem") -> str:
    """The first cards, and the rest folded away."""
    everything = list(items)
    rest = everything[_SHOWN:]
    return cards(everything[:_SHOWN], least=least) + details(f"{len(rest)} more", cards(rest, least=least))


def _reading(sample: Sample) -> str:
    return f"<p><small>{_verdict(sample)}reads as {escape(sample.note)}</small></p>"


def _verdict(sample: Sample) -> str:
    if sample.right is None:
        return ""
    return f'<span class="verdict">{"✓ right" if sample.right else "✗ wrong"}</span> · '


def _marked(text: str, wanted: str) -> str:
    """The caption, with the attributes marked that the right one does not have."""
    right = set(_WORD.findall(normalize(wanted)))
    if not text:
        return "(nothing)"
    return _WORD.sub(lambda m: m[0] if m[0] in right else f'<span class="off">{m[0]}</span>', escape(text))


def _text(sample: Sample) -> str:
    assert isinstance(sample.answer, str)
    return sample.answer if len(sample.answer) <= 300 else sample.answer[:300] + " …"


def _image(sample: Sample) -> np.ndarray:
    assert isinstance(sample.answer, np.ndarray)
    return sample.answer


def _titled(title: str, body: str) -> str:
    return f"<h3>{escape(title)}</h3>{body}" if body else ""


def _run(records: Sequence[Mapping[str, Any]]) -> str:
    measured = [record for record in records if "warning" not in record]
    warnings = [(record["step"], str(record["warning"])) for record in records if "warning" in record]
    if not measured:
        return ""
    names = sorted({name for record in measured for name in record})
    losses = [name for name in names if name == "loss" or (name.startswith("loss/") and name.count("/") == 1)]
    groups = {"Loss": losses}
    for loss in losses[1:] if len(losses) > 1 else []:
        groups[f"{loss.removeprefix('loss/').capitalize()} loss by set"] = [
            n for n in names if n.startswith(f"{loss}/")
        ]
    groups |= _MONITORS
    for kind in ("gradient", "update"):
        groups[f"{kind.capitalize()} norm by part"] = [n for n in names if n.startswith(f"{kind}_norm/")]
    groups["Evaluations"] = [name for name in names if name.startswith("eval/")]
    charts = []
    for title, members in groups.items():
        lines = [
            _line(name, measured, short="last" if len(members) == 1 else name.rpartition("/")[2])
            for name in members
            if name in names
        ]
        charts.append(line_chart(title, lines, marks=warnings, logarithmic=title in _LOGARITHMIC))
    notes = "".join(f'<p class="warning">Step {step}: {escape(text)}</p>' for step, text in warnings)
    return f'<p>{escape(_summary(measured))}</p>{notes}<div class="charts">{"".join(charts)}</div>'


def _line(name: str, records: Sequence[Mapping[str, Any]], *, short: str) -> Line:
    there = [record for record in records if name in record]
    return Line(short, [record["step"] for record in there], [record[name] for record in there])


def _summary(records: Sequence[Mapping[str, Any]]) -> str:
    """`"2000 steps in 5m10s; 12.4 steps/s, 31.2k tokens/s, 900 images/s; waiting for data 2% of the time"`."""
    last = records[-1]
    parts = [f"{last['step']} steps in {duration(last['time'] - records[0]['time'])} between first and last record"]
    rates = []
    for name, unit in (("steps", "steps/s"), ("tokens", "tokens/s"), ("images", "images/s")):
        values = [r[f"{name}_per_second"] for r in records if r.get(f"{name}_per_second") is not None]
        if values:
            rates.append(f"{number(float(np.median(values)))} {unit}")
    parts += [", ".join(rates)] if rates else []
    waits = [record["data_wait"] for record in records if record.get("data_wait") is not None]
    parts += [f"waiting for data {np.mean(waits):.0%} of the time"] if waits else []
    return "; ".join(parts) + "."


def _config(config: Mapping[str, Any]) -> str:
    """One table for each group of fields, folded."""
    plain = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    groups = {"Run": plain} | {name: value for name, value in config.items() if isinstance(value, Mapping)}
    return "".join(details(name.capitalize(), _facts(_flat(fields))) for name, fields in groups.items() if fields)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _facts(facts: Mapping[str, str]) -> str:
    return table((), ([escape(name), escape(value)] for name, value in facts.items()), kind="pairs") if facts else ""


def _times(evaluation: Evaluation) -> dict[str, str]:
    return {f"Evaluation: {name}": f"{seconds:.1f} s" for name, seconds in evaluation.seconds.items()}


def _made() -> str:
    return f"Written by emu_jax on {time.strftime('%d %B %Y, %H:%M')}."
