"""Plan a scaling study, run it, collect its runs, fit scaling laws and plot them.

    python -m emu_jax scaling plan --preset=cpu --study=runs/scaling/cpu
    python -m emu_jax scaling run --study=runs/scaling/cpu
    python -m emu_jax scaling collect --study=runs/scaling/cpu
    python -m emu_jax scaling fit --study=runs/scaling/cpu
    python -m emu_jax scaling plot --study=runs/scaling/cpu

    python -m emu_jax scaling fit --points=FILE.csv --json=law.json

`python -m emu_jax scaling plan --help` and the like list the options of each. `experiments/records/scaling_fit.md`
compares the fits with published ones.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu_jax.cli.arguments import ArgumentParser, at_least
from emu_jax.cli.imports import heavy_imports
from emu_jax.errors import UserError

if TYPE_CHECKING:
    from emu_jax.compile_analysis.topologies import Topology
    from emu_jax.scaling.analysis import Analysis

PRESETS = ("cpu", "one_gpu", "pod")
PRESET_FILES = "experiments/scaling/{}.py"


def main(argv: list[str]) -> None:
    """Run one action."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return
    if argv[0] not in ACTIONS:
        close = difflib.get_close_matches(argv[0], ACTIONS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the actions are {', '.join(ACTIONS)}."
        raise UserError(f"There is no action {argv[0]!r} of scaling; {hint}")
    ACTIONS[argv[0]](argv[1:])


def _parser(action: str, doc: str | None) -> ArgumentParser:
    lines = (doc or "").split("\n")
    text = "\n".join([lines[0], *(line.removeprefix("    ") for line in lines[1:])])
    return ArgumentParser(f"{__name__} {action}", text)


def plan(argv: list[str]) -> None:
    """Write the list of a study's runs: flags, N, D, C, learning rate and expected hours of each.

        python -m emu_jax scaling plan --preset=cpu --study=runs/scaling/cpu
        python -m emu_jax scaling plan --preset=pod --study=runs/scaling/pod --config.budgets='(1e18, 1e19, 1e20)'
        python -m emu_jax scaling plan --preset=pod --study=runs/scaling/v5e --topology=v5e:4x4

    A study is a file of fields (experiments/scaling/cpu.py is a preset); each can be set as --config.FIELD=VALUE. The
    list is in STUDY/plan.csv and STUDY/plan.json. Planned again with more budgets, widths or seeds, it is extended.
    """
    parser = _parser("plan", plan.__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", choices=PRESETS, help=f"short for --config={PRESET_FILES.format('PRESET')}")
    which.add_argument("--config", metavar="FILE", help="the fields of a study")
    parser.add_argument("--study", type=Path, required=True, metavar="DIR", help="folder of the study")
    parser.add_argument("--topology", help="take hours from the TPU compiler, such as v5p:2x2x1 (minutes per size)")
    a, overrides = parser.parse_config_args(argv)

    with heavy_imports():
        from emu_jax.cli.config_file import read_config
        from emu_jax.config import from_config_dict
        from emu_jax.scaling.folder import write_plan
        from emu_jax.scaling.plan import make_plan
        from emu_jax.scaling.study import StudyConfig
        from emu_jax.scaling.tables import plan_table
        from emu_jax.training.runs.emu import read_emu_config, with_vocabulary

    path = PRESET_FILES.format(a.preset) if a.preset else a.config
    study = from_config_dict(StudyConfig, read_config(path, overrides))
    shared = read_config(study.config, [f"--config.{override}" for override in study.overrides])
    base = read_emu_config(shared)
    vocab_size = study.vocab_size or _vocab_size(base.tokenizer, instruct=base.instruct)
    base = with_vocabulary(base, vocab_size=vocab_size)
    seconds = None
    if a.topology is not None:
        with heavy_imports():
            from emu_jax.compile_analysis.topologies import parse_topology

        topology = parse_topology(a.topology)
        hardware = dataclasses.replace(study.hardware, name=a.topology, chips=topology.chips)
        study = dataclasses.replace(study, hardware=hardware)
        seconds = _compiled_seconds(shared, topology, vocab_size=vocab_size)
    planned = make_plan(study, base, seconds_per_step=seconds)
    write_plan(a.study, planned)
    print(plan_table(planned))
    print(f"the plan is {a.study}; `python -m emu_jax scaling run --study={a.study}` runs it")


def _compiled_seconds(config: Any, topology: Topology, *, vocab_size: int) -> Callable[[dict[str, int]], float]:
    """Return a function that compiles the train step of a size for `topology` and returns its estimated seconds."""
    with heavy_imports():
        from emu_jax.compile_analysis.program import GenerationShape
        from emu_jax.compile_analysis.programs import PROGRAMS
        from emu_jax.compile_analysis.report import compile_report

    def seconds(sizes: dict[str, int]) -> float:
        sized = copy.deepcopy(config)
        sized.model.decoder.vocab_size = vocab_size
        for name, value in sizes.items():
            part, field = name.split(".")
            sized.model[part][field] = value
        unused = GenerationShape(rows=1, prompt=1, new_tokens=1, steps=1)
        found = compile_report(PROGRAMS["train"](sized, unused), topology).cost.seconds
        print(f"decoder width {sizes['decoder.width']}: {found:.4g} s per step on {topology}", flush=True)
        return found

    return seconds


def _vocab_size(tokenizer: str, *, instruct: bool) -> int:
    with heavy_imports():
        from emu_jax.data.tokenizer import Tokenizer

    if not Path(tokenizer).is_file():
        raise UserError(
            f"There is no tokenizer {tokenizer}: prepare the data first (`python -m emu_jax demo` for the synthetic "
            "world), or set --config.vocab_size."
        )
    return Tokenizer.load(tokenizer, instruct=instruct).vocab_size


def run(argv: list[str]) -> None:
    """Train every run of a plan that is not finished, one after another.

        python -m emu_jax scaling run --study=runs/scaling/cpu
        python -m emu_jax scaling run --study=runs/scaling/cpu --index=0 --of=4
        python -m emu_jax scaling run --study=runs/scaling/pod --paste=gs://BUCKET/scaling --pod='--type=v5p-64 --spot'

    Stopped or killed at any time, the same command resumes. With --index and --of each worker takes complete chains of
    runs, about equal in hours. --paste prints commands for Cloud TPU
    (docs/tutorials/cloud_tpu.md) instead. The log of a run is
    STUDY/runs/ID/train.log.
    """
    parser = _parser("run", run.__doc__)
    parser.add_argument("--study", type=Path, required=True, metavar="DIR", help="folder that `plan` wrote")
    parser.add_argument("--index", type=int, default=0, help="which part of the list, from 0 (default 0)")
    parser.add_argument("--of", type=int, default=1, metavar="N", help="number of parts (default 1)")
    parser.add_argument("--limit", type=at_least(0), metavar="N", help="only the first N runs that are left")
    parser.add_argument("--paste", metavar="BUCKET", help="print commands for pods, with workdirs in BUCKET")
    parser.add_argument("--pod", default="", metavar="OPTIONS", help="of tools/tpu/pod.sh, for --paste")
    a = parser.parse_args(argv)

    with heavy_imports():
        from emu_jax.scaling.folder import read_plan
        from emu_jax.scaling.runner import commands, run_all, slice_of, unfinished

    chosen = slice_of(read_plan(a.study), index=a.index, of=a.of)
    if a.paste is not None:
        print("\n".join(commands(chosen, bucket=a.paste, pod_options=a.pod)))
        return
    if a.limit is not None:
        chosen = unfinished(a.study, chosen)[: a.limit]
    run_all(a.study, chosen, say=lambda line: print(line, flush=True))


def collect(argv: list[str]) -> None:
    """Write one table of a study's runs: STUDY/points.csv and STUDY/points.parquet.

        python -m emu_jax scaling collect --study=runs/scaling/cpu

    Runs that collapsed or diverged stay in the table, marked in the column `outcome`; `fit` leaves them out. Runs from
    a bucket are read once their metrics.jsonl and config.json are copied to STUDY/runs/ID.
    """
    parser = _parser("collect", collect.__doc__)
    parser.add_argument("--study", type=Path, required=True, metavar="DIR", help="folder that `plan` wrote")
    a = parser.parse_args(argv)

    with heavy_imports():
        from emu_jax.scaling.collect import collect as collect_rows
        from emu_jax.scaling.collect import write_table
        from emu_jax.scaling.folder import read_plan
        from emu_jax.scaling.tables import outcome_table

    rows = collect_rows(a.study, read_plan(a.study))
    paths = write_table(a.study, rows)
    print(outcome_table(rows))
    print(f"wrote {' and '.join(map(str, paths))}")


def fit(argv: list[str]) -> None:
    """Fit L(N, D) = E + A / N^alpha + B / D^beta by VPNLS and by Approaches 1, 2 and 3, with bootstrap intervals.

        python -m emu_jax scaling fit --study=runs/scaling/cpu
        python -m emu_jax scaling fit --study=runs/scaling/cpu --loss=eval_text,eval_regression
        python -m emu_jax scaling fit --points=FILE.csv --json=law.json
        python -m emu_jax scaling fit --points=FILE.csv --group=experiment --json=laws.json

    The table has columns params, tokens, loss, budget. With several losses the JSON has a fit for each under `losses`,
    and a joint fit with shared exponents; with --group one for each group under `groups`.
    """
    parser = _parser("fit", fit.__doc__)
    _add_fit_options(parser)
    parser.add_argument("--json", type=Path, metavar="OUT", help="default: STUDY/fit.json")
    a = parser.parse_args(argv)
    _check_source(a)

    with heavy_imports():
        from emu_jax.io.files import write_json
        from emu_jax.scaling.analysis import fit_json
        from emu_jax.scaling.tables import fit_table

    analysis = _analysis(a)
    for name, result in analysis.results.items():
        print(fit_table(result, title=name))
    for note in analysis.notes:
        print(note)
    output = a.json or (a.study / "fit.json" if a.study else None)
    if output is not None:
        write_json(output, fit_json(analysis))
        print(f"wrote {output}")


def plot(argv: list[str]) -> None:
    """Write one HTML page with every table and figure of a fit.

        python -m emu_jax scaling plot --study=runs/scaling/cpu
        python -m emu_jax scaling plot --points=FILE.csv --output=law.html

    The options are those of `fit`, which runs again with the same seed.
    """
    parser = _parser("plot", plot.__doc__)
    _add_fit_options(parser)
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="default: STUDY/report.html")
    a = parser.parse_args(argv)
    _check_source(a)
    output = a.output or (a.study / "report.html" if a.study else None)
    if output is None:
        raise UserError("--output is missing: the page to write.")

    with heavy_imports():
        from emu_jax.scaling.report import write_scaling_report

    analysis = _analysis(a)
    source = a.study or a.points
    write_scaling_report(
        output,
        analysis.results,
        title=f"Scaling laws of {source.stem}",
        lead=f"{source}: " + ", ".join(f"{name} ({len(one.points)} points)" for name, one in analysis.results.items()),
        rows=analysis.rows if a.study else (),
    )
    print(f"the page is {output}")


def _add_fit_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", type=Path, metavar="DIR", help="a study that `collect` has made a table of")
    parser.add_argument("--points", type=Path, metavar="FILE", help="any .csv or .parquet with the columns")
    parser.add_argument("--loss", default="loss", metavar="COLUMNS", help="one or several, with commas (default loss)")
    parser.add_argument("--group", metavar="COLUMN", help="fit the rows of each value of this column separately")
    parser.add_argument("--pin-e", type=float, metavar="E", help="hold E at a value, such as a known entropy")
    parser.add_argument("--bootstraps", type=at_least(0), default=100, help="samples for the intervals (default 100)")
    parser.add_argument("--level", type=float, default=0.9, help="of the intervals (default 0.9)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstraps (default 0)")
    parser.add_argument("--budget", default="", metavar="FLOPS", help="predict optima there, such as 1e21,1e22")


def _check_source(a: argparse.Namespace) -> None:
    if (a.study is None) == (a.points is None):
        raise UserError("Give either --study=DIR or --points=FILE.")


def _analysis(a: argparse.Namespace) -> Analysis:
    with heavy_imports():
        from emu_jax.scaling.analysis import analyze
        from emu_jax.scaling.fit import FitOptions

    try:
        budgets = tuple(float(word) for word in a.budget.split(",") if word)
    except ValueError:
        raise UserError(f"--budget takes numbers such as 1e21,1e22, not {a.budget!r}.") from None
    options = FitOptions(pinned=a.pin_e, bootstraps=a.bootstraps, level=a.level, seed=a.seed, budgets=budgets)
    losses = tuple(word for word in a.loss.split(",") if word)
    return analyze(a.study, a.points, losses=losses, group=a.group, options=options)


ACTIONS: dict[str, Callable[[list[str]], None]] = {
    "plan": plan,
    "run": run,
    "collect": collect,
    "fit": fit,
    "plot": plot,
}
