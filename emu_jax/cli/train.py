"""Trains a model as a config file says; the same command goes on with a run that was stopped.

    python -m emu_jax train --config=configs/tiny.py --workdir=runs/tiny
    python -m emu_jax train --config=configs/tiny.py --workdir=runs/tiny --config.train.steps=2000 \\
        --config.train.optimizer.learning_rate=1e-3

Any field of the config can be set on the command line. WORKDIR takes config.json, tokenizer.model,
checkpoints/STEP/{params, optimizer, data, config}, metrics.jsonl, tensorboard/, report.html and rejects/, the documents
that could not be used; --profile writes an XLA profile of steps 10 to 13 there. The stages `vae` and `visual_decoder`
leave their result in WORKDIR/visual_decoder, a folder that diffusers opens. SIGTERM and Ctrl-C finish the step, save
and exit with 0. On several hosts give the same command on each, with a --workdir that all reach, as gs://BUCKET/RUN
(docs/cloud_tpu.md).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax

from emu_jax.checkpoints.model_directory import carry_unused
from emu_jax.cli.config_file import read_flags
from emu_jax.config import to_dict
from emu_jax.demo.report import write_run_report
from emu_jax.errors import UserError
from emu_jax.io.mirror import Mirror, is_remote
from emu_jax.training.jobs import Job, read_job
from emu_jax.training.log import METRICS_FILE
from emu_jax.training.loop import CHECKPOINTS, train
from emu_jax.training.processes import start_processes


def main(argv: list[str]) -> None:
    if not argv or "--help" in argv or "-h" in argv:
        print(__doc__)
        return
    config, place = read_flags(argv)
    start_processes()
    mirror = Mirror(place, fetch=[METRICS_FILE]) if is_remote(place) else None
    workdir = Path(place) if mirror is None else mirror.local
    if "data" in config and not config.data.rejects:
        config.data.rejects = str(workdir / "rejects")
    job = read_job(config)
    keep_config(job, workdir)
    result = train(
        job.train,
        stage=job.stage,
        data=job.data,
        workdir=workdir,
        checkpoints=f"{place.rstrip('/')}/{CHECKPOINTS}",
        run_config=to_dict(job.config),
        start=job.start,
        sinks=[] if mirror is None else [mirror],
    )
    lead = jax.process_index() == 0
    if lead:
        print(f"report: {write_run_report(workdir, config=to_dict(job.config))}")
    if result.stopped_by is None:
        job.finish(workdir, result)
    if mirror is not None and lead:
        mirror.push()
    # On every process: tools/tpu/worker.sh tells the end from a stop by it.
    print(f"finished step {result.step}" if result.stopped_by is None else f"stopped at step {result.step}", flush=True)


def keep_config(job: Job, workdir: Path) -> None:
    """WORKDIR/config.json and WORKDIR/tokenizer.model, so that the workdir explains itself."""
    if jax.process_index() != 0:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        temporary = workdir / "config.json.tmp"
        temporary.write_text(json.dumps(to_dict(job.config), indent=2) + "\n")
        temporary.rename(workdir / "config.json")
        target = workdir / "tokenizer.model"
        if job.tokenizer is not None and not (target.exists() and target.samefile(job.tokenizer)):
            shutil.copyfile(job.tokenizer, workdir / "tokenizer.model.tmp")
            (workdir / "tokenizer.model.tmp").rename(target)
        if job.train.warm_start is not None:
            carry_unused(Path(job.train.warm_start), workdir)
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written ({error.strerror}).") from None
