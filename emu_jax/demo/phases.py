"""The phases of the demo: write data, train, assemble a model and evaluate it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markup import escape

from emu_jax.checkpoints.model_directory import save_model
from emu_jax.convert.load import load_model
from emu_jax.demo.data import IMAGE_SIZE, NUM_FRAMES, prepare_commands, write_data
from emu_jax.demo.examples import Settings
from emu_jax.demo.report import write_evaluation_report
from emu_jax.demo.runner import evaluate_pipeline, peak_memory_gb, score_table
from emu_jax.demo.world.world import WorldSizes
from emu_jax.errors import UserError
from emu_jax.generation.api import load
from emu_jax.io.files import file_errors, read_json, write_json
from emu_jax.io.lock import folder_lock
from emu_jax.training.log import read_metrics

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

Overrides = dict[str, object]  # field of a config -> value
ProgressBar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]  # of a title; yields f(done, total)


@dataclass(frozen=True)
class Scale:
    """The amount of data and training. `overrides` changes fields of the runs in configs/demo.py."""

    world: WorldSizes
    overrides: dict[str, Overrides]
    examples: int
    scenes: int
    images: int
    sampler_steps: int


FULL = Scale(WORLD, overrides={}, examples=10_000, scenes=256, images=128, sampler_steps=20)
_FEW_STEPS: Overrides = {"train.steps": 6, "train.log_every": 3}
_SMALL_MODEL: Overrides = {
    "data.batch.batch_size": 4,
    "model.decoder.num_layers": 1,
    "model.vision.num_layers": 1,
}
_ONE_LEVEL: Overrides = {
    "unet.block_out_channels": "(32,)",
    "unet.down_block_types": "('CrossAttnDownBlock2D',)",
    "unet.up_block_types": "('CrossAttnUpBlock2D',)",
}
FAST = Scale(
    WORLD.scaled(0.02),
    overrides={
        "captions": _FEW_STEPS | _SMALL_MODEL,
        "pretrain": _FEW_STEPS | _SMALL_MODEL,
        "vae": _FEW_STEPS | {"batch_size": 4} | _ONE_LEVEL,
        "unet": _FEW_STEPS | {"batch_size": 4},
    },
    examples=64,
    scenes=16,
    images=8,
    sampler_steps=5,
)


def run_demo(workdir: Path, *, fast: bool, progress: ProgressBar) -> None:
    """Run all phases that are not complete yet.

    Raises:
      UserError: the present folder is not the repository, `workdir` is in use or has other settings, or a command
        failed.
    """
    if not Path(CONFIG).is_file():
        raise UserError(f"There is no {CONFIG} here; run the demo from the folder of the repository.")
    if fast:  # compilation takes most of the time; without optimizations it is twice as fast
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        jax.config.update("jax_disable_most_optimizations", True)
    with folder_lock(workdir):
        Demo(workdir, FAST if fast else FULL, progress=progress).run()


class Demo:
    """The phases in order. WORKDIR/demo.json records the complete ones with their time and peak memory."""

    def __init__(self, workdir: Path, scale: Scale, *, progress: ProgressBar) -> None:
        """Read the record of an earlier start, if any."""
        self.workdir, self.scale, self.progress = workdir, scale, progress
        self.console = Console()
        self.record_path = workdir / "demo.json"
        settings = json.loads(json.dumps(asdict(scale)))
        self.record: dict[str, Any] = {"settings": settings, "phases": {}}
        if self.record_path.is_file():
            self.record = read_json(self.record_path)
            if not isinstance(self.record, dict) or self.record.get("settings") != settings:
                raise UserError(f"{workdir} holds a demo with other settings; choose another --workdir, or remove it.")

    def run(self) -> None:
        """Run the phases that are not complete yet."""
        phases: dict[str, Callable[[], None]] = {
            "Write the synthetic world": self.write_world,
            "Prepare the data": self.prepare_data,
            "Train on captions": lambda: self.train("captions"),
            "Train on captions and images": lambda: self.train("pretrain", **self.warm_start("captions")),
            "Train the autoencoder": lambda: self.train("vae"),
            "Predict embeddings for the captions": self.predict_embeddings,
            "Train the visual decoder": lambda: self.train("unet"),
            "Assemble the model": self.assemble,
            "Evaluate": self.evaluate,
        }
        for number, (title, phase) in enumerate(phases.items(), start=1):
            heading = f"[bold]\\[{number}/{len(phases)}] {title}[/]"
            if title in self.record["phases"]:
                self.console.print(f"{heading}  already done, in {self.record['phases'][title]['seconds']:.0f} s")
                continue
            self.console.print(heading)
            started = time.monotonic()
            try:
                phase()
            except KeyboardInterrupt:
                self.console.print("\nstopped; run the same command to resume")
                raise
            self._record(title, time.monotonic() - started)
        report = escape(str(self.workdir / "report.html"))
        self.console.print(f"done in {self._seconds() / 60:.1f} minutes; open [bold]{report}[/]")

    def write_world(self) -> None:
        """Write the data sets in their original formats, and the tokenizer."""
        self.note(f"writes {self.workdir / 'world'} and {self.workdir / 'tokenizer.model'}")
        with self.progress("shards") as progress:
            write_data(self.workdir, self.scale.world, progress=progress)

    def prepare_data(self) -> None:
        """Prepare every set of the world."""
        for words in prepare_commands(self.workdir):
            self.command(*words)

    def train(self, run: str, **overrides: object) -> None:
        """Train one run of configs/demo.py in its own process."""
        overrides |= self.scale.overrides.get(run, {})
        self.command(
            "train",
            f"--config={CONFIG}:{run},{self.workdir}",
            f"--workdir={self.workdir / run}",
            *(f"--config.{field}={value}" for field, value in overrides.items()),
        )

    def warm_start(self, run: str) -> dict[str, object]:
        """Return the override that starts from the last checkpoint of another run."""
        folder = self.workdir / run / "checkpoints"
        with file_errors("read", folder):
            steps = [int(step.name) for step in folder.iterdir() if step.name.isdigit()]
        return {"train.warm_start": folder / str(max(steps))}

    def predict_embeddings(self) -> None:
        """Write the predicted embeddings of captions, and the latents of their images, to WORKDIR/data/decoder."""
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
        """Copy the Emu and the visual decoder to WORKDIR, which then is a model directory."""
        decoder = self.workdir / "unet" / "visual_decoder"
        self.note(f"copies the model of {self.workdir / 'pretrain'} and {decoder} to {self.workdir}")
        parts = load_model(self.workdir / "pretrain")
        save_model(self.workdir, parts.config, parts.params, tokenizer=parts.tokenizer)
        with file_errors("write", self.workdir / "visual_decoder"):
            shutil.copytree(decoder, self.workdir / "visual_decoder", dirs_exist_ok=True)

    def evaluate(self) -> None:
        """Print the scores; write metrics.json and report.html."""
        started = time.monotonic()
        self.note(f"writes {self.workdir / 'metrics.json'} and {self.workdir / 'report.html'}")
        settings = Settings(self.scale.scenes, self.scale.images, image_size=IMAGE_SIZE, num_frames=NUM_FRAMES)
        with self.progress("tasks") as progress:
            evaluation = evaluate_pipeline(
                load(self.workdir),
                settings,
                sampling={"steps": self.scale.sampler_steps},
                progress=lambda name, done, total: progress(done, total),
            )
        self.console.print(score_table(evaluation))
        seconds = self._seconds() + time.monotonic() - started
        peak = max(_peak_memory_gb(), *self._recorded("peak_rss_gb"))
        totals = {"seconds_total": round(seconds, 1), "peak_rss_gb": round(peak, 3), "phases": self.record["phases"]}
        write_json(self.workdir / "metrics.json", evaluation.metrics() | totals)
        write_evaluation_report(
            self.workdir / "report.html",
            evaluation,
            title="A small Emu, from data to evaluation",
            lead="Scores of a small Emu on the synthetic shapes world, on scenes not seen in training.",
            runs=[(run, read_metrics(self.workdir / run)) for run in ("captions", "pretrain", "vae", "unet")],
            config=read_json(self.workdir / "captions" / "config.json"),
            facts={"Total time": f"{seconds / 60:.1f} minutes", "Peak memory of a process": f"{peak:.2f} GB"}
            | {title: f"{phase['seconds']:.0f} s" for title, phase in self.record["phases"].items()},
        )

    def command(self, *words: str) -> None:
        """Print and run `python -m emu_jax WORDS`. Ctrl-C reaches the command too: it saves before the demo stops."""
        self.note(f"$ python -m emu_jax {shlex.join(words)}")
        process = subprocess.Popen([sys.executable, "-m", "emu_jax", *words])
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
        if code:
            raise UserError(f"`{words[0]}` failed (exit code {code}); fix the error above and start the demo again.")

    def note(self, text: str) -> None:
        """Print a dim line as it is."""
        self.console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    def _record(self, title: str, seconds: float) -> None:
        """Record a phase as complete."""
        phase = {"seconds": round(seconds, 1), "peak_rss_gb": round(_peak_memory_gb(), 3)}
        self.record["phases"][title] = phase
        write_json(self.record_path, self.record)

    def _recorded(self, field: str) -> list[float]:
        return [phase[field] for phase in self.record["phases"].values()]

    def _seconds(self) -> float:
        return sum(self._recorded("seconds"))


def _peak_memory_gb() -> float:
    """Return the peak memory of this process or of its largest finished command."""
    return max(peak_memory_gb(), peak_memory_gb(children=True))
