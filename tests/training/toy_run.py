"""Train the toy stage in its own process, which a test can kill.

python -m tests.training.toy_run WORKDIR STEPS [--slow SECONDS] [--gate STEP]
"""

import argparse
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import optax

from emu_jax.training.config import CheckpointConfig, OptimizerConfig, TrainConfig
from emu_jax.training.loop import train
from emu_jax.training.processes import start_processes
from tests.training.toy import ToyData, ToyStage


class SlowData(ToyData):
    """Wait before each batch, so that a kill happens during the run; wait indefinitely before batch `gate`."""

    seconds, gate = 0.0, None

    def __next__(self):
        time.sleep(self.seconds if self.index != self.gate else 1e6)
        return super().__next__()


def config(steps: int, *, every: int = 5) -> TrainConfig:
    return TrainConfig(
        steps=steps,
        log_every=1,
        accumulation=2,
        optimizer=OptimizerConfig(learning_rate=1e-2, ema_decay=0.9),
        checkpoint=CheckpointConfig(every_steps=every),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("steps", type=int)
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--gate", type=int)
    arguments = parser.parse_args()
    start_processes()

    stage = ToyStage()

    def data(states):
        data = SlowData(stage, shard=jax.process_index(), shards=jax.process_count())
        data.seconds, data.gate = arguments.slow, arguments.gate
        if states:
            data.set_state(states[0])  # index of the global batch, the same for all processes
        return data

    def norm(step, params):
        return {"norm": float(jax.jit(optax.global_norm)(params))}

    result = train(config(arguments.steps), stage=stage, data=data, workdir=arguments.workdir, evaluations=[norm])
    print(f"step {result.step} stopped_by {result.stopped_by}", flush=True)


if __name__ == "__main__":
    main()
