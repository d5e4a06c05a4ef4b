"""A small Emu, end to end: draws a world, trains an Emu and its visual decoder on it, and shows what they learnt.

    python -m emu_jax demo                  23 minutes on two cores
    python -m emu_jax demo --fast           a little of everything in three minutes

What it makes lies under --workdir: the data sets in their real formats (world/), prepared (data/), a folder for each
training run, the finished model (config.json, params/, tokenizer.model, visual_decoder/), metrics.json and report.html.
Stopped and started again it goes on. Each step is a command of its own, which is printed before it runs.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
from rich.console import Console

from emu_jax.checkpoints.model_directory import save_model
from emu_jax.cli.arguments import ArgumentParser
from emu_jax.cli.evaluate import run as run_evaluation
from emu_jax.convert.load import load_model
from emu_jax.demo.data import IMAGE_SIZE, NUM_FRAMES, draw_world, prepare_sets
from emu_jax.demo.examples import Settings
from emu_jax.demo.report import write_evaluation_report
from emu_jax.demo.runner import peak_rss_gb, score_table, write_json
from emu_jax.demo.world.world import WorldSizes
from emu_jax.errors import UserError
from emu_jax.generation.api import load

WORLD = WorldSizes(
    laion2b=1_500,
    laion_coco=14_000,
    mmc4=1_000,
    webvid=400,
    storyboards=800,
    in_context=2_000,
    llava=10_000,
    videochat=250,
)
CONFIG = "configs/demo.py"

Overrides = dict[str, object]  # a field of a config -> its value


@dataclass(frozen=True)
class Scale:
    """How much of everything. `overrides` are fields of the runs of configs/demo.py that are otherwise."""

    world: WorldSizes
    overrides: dict[str, Overrides]
    examples: int
    scenes: int
    pictures: int
    sampler_steps: int


FULL = Scale(WORLD, overrides={}, examples=10_000, scenes=256, pictures=128, sampler_steps=20)
_FEW: Overrides = {"train.steps": 6, "train.log_every": 3}
_SHALLOW: Overrides = {"data.batch.batch_size": 4, "model.decoder.num_layers": 1, "model.vision.num_layers": 1}
_ONE_LEVEL: Overrides = {
    "unet.block_out_channels": "(32,)",
    "unet.down_block_types": "('CrossAttnDownBlock2D',)",
    "unet.up_block_types": "('CrossAttnUpBlock2D',)",
}
FAST = Scale(
    WORLD.scaled(0.02),
    overrides={
        "captions": _FEW | _SHALLOW,
        "pretrain": _FEW | _SHALLOW,
        "vae": _FEW | {"batch_size": 4} | _ONE_LEVEL,
        "unet": _FEW | {"batch_size": 4},
    },
    examples=64,
    scenes=16,
    pictures=8,
    sampler_steps=5,
)


def main(argv: list[str]) -> None:
    parser = ArgumentParser(__name__, __doc__)
    parser.add_argument("--workdir", type=Path, help="default: runs/demo, with --fast runs/demo_fast")
    parser.add_argument("--fast", action="store_true", help="a little of everything, to see that it runs")
    a = parser.parse_args(argv)
    if not Path(CONFIG).is_file():
        raise UserError(f"There is no {CONFIG} here; run the demo from the repository's folder.")
    if a.fast:  # most of its time is compiling: these programs are ready twice as soon, and run slower
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
    Demo(a.workdir or Path("runs/demo_fast" if a.fast else "runs/demo"), FAST if a.fast else FULL).run()


class Demo:
    """The phases in order; what is done, in how many seconds and how much memory, is kept in WORKDIR/demo.json."""

    def __init__(self, workdir: Path, scale: Scale) -> None:
        self.workdir, self.scale = workdir, scale
        self.console = Console()
        self.record = workdir / "demo.json"
        settings = json.loads(json.dumps(asdict(scale)))
        self.done: dict = {"settings": settings, "phases": {}}
        if self.record.is_file():
            self.done = json.loads(self.record.read_text())
            if self.done["settings"] != settings:
                raise UserError(f"{workdir} holds a demo of another scale; choose another --workdir, or remove it.")

    def run(self) -> None:
        """All phases that are not done yet."""
        phases: dict[str, Callable[[], None]] = {
            "Draw the world": lambda: draw_world(self.workdir, self.scale.world),
            "Prepare the data": lambda: prepare_sets(self.workdir),
            "Learn to read pictures": lambda: self.train("captions"),
            "Learn to predict pictures": lambda: self.train("pretrain", **self.warm_start("captions")),
            "Learn to compress pictures": lambda: self.train("vae"),
            "Predict a picture for each caption": self.predict_conditions,
            "Learn to paint": lambda: self.train("unet"),
            "Put the model together": self.assemble,
            "Look at what was learnt": self.evaluate,
        }
        for number, (title, phase) in enumerate(phases.items(), start=1):
            heading = f"[bold]\\[{number}/{len(phases)}] {title}[/]"
            if title in self.done["phases"]:
                self.console.print(f"{heading}  done before, in {self.done['phases'][title]['seconds']:.0f} s")
                continue
            self.console.print(heading)
            started = time.monotonic()
            try:
                phase()
            except KeyboardInterrupt:
                self.console.print("\nstopped; the same command goes on from here")
                raise
            self._keep(title, time.monotonic() - started)
        self.console.print(f"done in {self._seconds() / 60:.1f} minutes; open [bold]{self.workdir / 'report.html'}[/]")

    def train(self, run: str, **overrides: object) -> None:
        """One run of configs/demo.py in a process of its own, as a user would start it."""
        overrides |= self.scale.overrides.get(run, {})
        self.command(
            "train",
            f"--config={CONFIG}:{run},{self.workdir}",
            f"--workdir={self.workdir / run}",
            *(f"--config.{field}={value}" for field, value in overrides.items()),
        )

    def warm_start(self, run: str) -> dict[str, object]:
        """The override that begins with the last checkpoint of another run."""
        steps = [int(step.name) for step in (self.workdir / run / "checkpoints").iterdir() if step.name.isdigit()]
        return {"train.warm_start": self.workdir / run / "checkpoints" / str(max(steps))}

    def predict_conditions(self) -> None:
        """What Emu predicts for the captions, and the pictures' latents: WORKDIR/data/decoder."""
        self.command(
            "prepare-decoder-data",
            f"--checkpoint={self.workdir / 'pretrain'}",
            f"--decoder={self.workdir / 'vae' / 'visual_decoder'}",
            f"--sets={self.workdir / 'data' / 'laion_coco'}",
            f"--output={self.workdir / 'data' / 'decoder'}",
            f"--image-size={IMAGE_SIZE}",
            f"--limit={self.scale.examples}",
        )

    def assemble(self) -> None:
        """The finished model in WORKDIR itself."""
        parts = load_model(self.workdir / "pretrain")
        save_model(self.workdir, parts.config, parts.params, tokenizer=parts.tokenizer)
        shutil.copytree(self.workdir / "unet" / "visual_decoder", self.workdir / "visual_decoder", dirs_exist_ok=True)

    def evaluate(self) -> None:
        """The table, metrics.json and report.html."""
        started = time.monotonic()
        settings = Settings(self.scale.scenes, self.scale.pictures, image_size=IMAGE_SIZE, num_frames=NUM_FRAMES)
        evaluation = run_evaluation(load(self.workdir), settings, {"steps": self.scale.sampler_steps})
        self.console.print(score_table(evaluation))
        seconds = self._seconds() + time.monotonic() - started
        peak = max(peak_rss_gb(), self._children_peak_rss_gb(), *self._phases("peak_rss_gb"))
        found = {"seconds_total": round(seconds, 1), "peak_rss_gb": round(peak, 3), "phases": self.done["phases"]}
        write_json(self.workdir / "metrics.json", evaluation.metrics() | found)
        write_evaluation_report(
            self.workdir / "report.html",
            evaluation,
            title="A small Emu, end to end",
            lead="What a small Emu learnt from a drawn world, on scenes that it has never seen.",
            runs=[(run, self.workdir / run) for run in ("captions", "pretrain", "vae", "unet")],
            config=json.loads((self.workdir / "captions" / "config.json").read_text()),
            facts={"Time in all": f"{seconds / 60:.1f} minutes", "Most memory of a process": f"{peak:.2f} GB"}
            | {title: f"{phase['seconds']:.0f} s" for title, phase in self.done["phases"].items()},
        )

    def command(self, *words: str) -> None:
        """`python -m emu_jax WORDS`, printed first. Ctrl-C reaches it too: it saves, and then we stop."""
        self.console.print(f"$ python -m emu_jax {' '.join(words)}", style="dim", highlight=False, soft_wrap=True)
        process = subprocess.Popen([sys.executable, "-m", "emu_jax", *words])
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
        if code:
            raise UserError(
                f"`{words[0]}` failed (exit code {code}); mend what it says above and start the demo again."
            )

    def _keep(self, title: str, seconds: float) -> None:
        """Notes a phase as done."""
        peak = max(peak_rss_gb(), self._children_peak_rss_gb())
        self.done["phases"][title] = {"seconds": round(seconds, 1), "peak_rss_gb": round(peak, 3)}
        write_json(self.record, self.done)

    def _phases(self, field: str) -> list[float]:
        return [phase[field] for phase in self.done["phases"].values()]

    def _seconds(self) -> float:
        return sum(self._phases("seconds"))

    @staticmethod
    def _children_peak_rss_gb() -> float:
        """The most memory that one of the commands has held."""
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9
