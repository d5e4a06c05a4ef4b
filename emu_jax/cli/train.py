"""Train the model of a config file; the same command resumes a run that was stopped.

    python -m emu_jax train --config=configs/tiny.py --workdir=runs/tiny
    python -m emu_jax train --config=configs/tiny.py --workdir=runs/tiny --config.train.steps=2000 \\
        --config.train.optimizer.learning_rate=1e-3

WORKDIR receives config.json, tokenizer.model, checkpoints/STEP/{params, optimizer, data, config}, metrics.jsonl,
tensorboard/, report.html, and rejects/ with a list of the documents that could not be read. The stages `vae` and
`visual_decoder` also write WORKDIR/visual_decoder, a folder that diffusers opens.

A resumed run must have the config of its newest checkpoint, except for fields that change neither the arithmetic nor
the order of the data, such as train.steps, learning rates and checkpoints. A refused run writes nothing.

SIGTERM and Ctrl-C finish the current step, save a checkpoint and exit with code 0. On several hosts, start the same
command on each of them, with a --workdir that all of them can reach, such as gs://BUCKET/RUN
(docs/tutorials/cloud_tpu.md).
"""

from __future__ import annotations

import functools
from pathlib import Path

from emu_jax.cli.arguments import ArgumentParser, PathOrURL
from emu_jax.cli.compilation_cache import use_bucket
from emu_jax.cli.imports import heavy_imports

FIELDS = """
Any field of the config can be set with --config.FIELD=VALUE. Often used fields:
  evaluation.sets, evaluation.tasks, evaluation.data        held-out losses and benchmarks
  train.steps, train.warm_start, train.accumulation, train.log_every, train.evaluate_every
  train.optimizer.learning_rate, train.optimizer.warmup_fraction, train.optimizer.schedule
  train.mesh.data, train.mesh.fsdp, train.mesh.tensor       sizes of the device mesh; -1 is the rest
  train.checkpoint.every_steps, train.checkpoint.keep
  data.batch.batch_size, data.sets[0].path, data.workers    stages of an Emu
  pretrain.trainable, pretrain.detach_regression            stages of an Emu
WORKDIR/config.json lists all fields with their values. An error names the field nearest to a misspelled one.
"""


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = ArgumentParser(__name__, __doc__, epilog=FIELDS)
    parser.add_config_argument()
    parser.add_argument(
        "--workdir", required=True, type=PathOrURL, metavar="DIR", help="folder of the run, or gs://BUCKET/RUN"
    )
    parser.add_argument(
        "--profile", action="store_true", help="write an XLA profile of steps 10 to 13 to WORKDIR/profile"
    )
    arguments, overrides = parser.parse_config_args(argv)

    with heavy_imports():
        import jax

        from emu_jax.checkpoints.model_directory import TOKENIZER
        from emu_jax.cli.config_file import read_config
        from emu_jax.cli.training_tasks import task_evaluations
        from emu_jax.config import to_dict
        from emu_jax.io.mirror import Mirror, is_remote
        from emu_jax.reporting.training_run import REPORT, write_run_report
        from emu_jax.training.log import METRICS_FILE, read_metrics
        from emu_jax.training.loop import CHECKPOINTS, train
        from emu_jax.training.processes import start_processes
        from emu_jax.training.resume import check_resume
        from emu_jax.training.runs.registry import open_run
        from emu_jax.training.runs.workdir import workdir_lock

    config = read_config(arguments.config, overrides)
    if arguments.profile:
        config.train.profile = True
    start_processes()
    target = arguments.workdir.rstrip("/")
    use_bucket(target)
    mirror = Mirror(target, fetch=[METRICS_FILE, TOKENIZER]) if is_remote(target) else None
    workdir = Path(target).absolute() if mirror is None else mirror.local
    if "data" in config and not config.data.rejects:
        config.data.rejects = str(workdir / "rejects")
    run = open_run(config)
    is_main_process = jax.process_index() == 0
    checkpoints = workdir / CHECKPOINTS if mirror is None else f"{target}/{CHECKPOINTS}"
    with workdir_lock(workdir, remote=mirror is not None):
        changed = check_resume(run.config, checkpoints, tokenizer=run.tokenizer, workdir=workdir)
        if changed is not None and is_main_process:
            print(changed)
        result = train(
            run.train,
            stage=run.stage,
            data=run.data,
            workdir=workdir,
            checkpoints=checkpoints,
            run_config=to_dict(run.config),
            initialize=run.initialize,
            evaluations=[*run.evaluations, *task_evaluations(run)],
            sinks=[] if mirror is None else [mirror],
            on_start=functools.partial(run.write_config, workdir),
        )
        if is_main_process and not (result.idle and (workdir / REPORT).exists()):
            print(f"report: {write_run_report(workdir, read_metrics(workdir), config=to_dict(run.config))}")
        if result.stopped_by is None:
            run.finish(workdir, result)
        if mirror is not None and is_main_process:
            mirror.push()
    # Printed by every process: tools/tpu/worker.sh reads this line to distinguish the end of a run from a stop.
    print(f"finished step {result.step}" if result.stopped_by is None else f"stopped at step {result.step}", flush=True)
