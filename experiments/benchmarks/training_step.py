"""Time the train step of an Emu in emu_jax and in plain PyTorch: same weights and batch, AdamW, float32.

    make parity                                                        # makes .venv-parity, with JAX and torch
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 .venv-parity/bin/python experiments/benchmarks/training_step.py
    ... experiments/benchmarks/training_step.py --size=20m --threads=1

Each side runs in its own process, so that neither waits for the other's threads. They run alternating steps.
A step is the forward pass with both losses, the backward pass, clipping and AdamW, for 16 packed rows of 128 tokens and
five images. The table has the median and the minimum of the wall time and of the CPU time of all threads. On a machine
with other work, compare the minima. The losses of the first steps show that both sides train the same model.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import jax
import numpy as np

from emu_jax.data.batch import BatchConfig
from emu_jax.models.config import CausalFormerConfig, DecoderConfig, EmuConfig, VisionConfig
from emu_jax.models.presets import emu_tiny
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.training.compilation import compile_train_step
from emu_jax.training.config import OptimizerConfig, Schedule, TrainConfig
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.prefetch import batch_shardings
from emu_jax.training.stages.pretrain import PretrainStage
from emu_jax.training.state import TrainState, create_state

ROWS, LENGTH, IMAGES = 16, 128, 5
CAPTION = 19  # tokens after each image
LEARNING_RATE, B1, B2, EPS, DECAY = 1e-3, 0.9, 0.98, 1e-6, 0.02
STEPS = 1_000_000  # of the learning-rate schedule, which is constant
SIDES = ("torch", "emu_jax")
OPTIMIZER = OptimizerConfig(
    learning_rate=LEARNING_RATE,
    schedule=Schedule.CONSTANT,
    warmup_fraction=0.0,
    weight_decay=DECAY,
    b1=B1,
    b2=B2,
    eps=EPS,
    no_decay=(),
)
COMPARED = 3  # first steps whose losses are compared


def emu_20m(*, vocab_size: int) -> EmuConfig:
    """Return an Emu of 20M parameters for images of 32 x 32 pixels."""
    return EmuConfig(
        vision=VisionConfig(image_size=32, patch_size=8, width=256, num_layers=6, num_heads=4, mlp_dim=1024),
        causal_former=CausalFormerConfig(
            num_image_tokens=4, width=256, num_layers=4, num_heads=4, head_dim=64, mlp_dim=1024, dropout=0.0
        ),
        decoder=DecoderConfig(
            vocab_size=vocab_size, width=384, num_layers=4, num_heads=6, num_kv_heads=6, mlp_dim=1024, max_length=512
        ),
    )


SIZES = {"demo": (emu_tiny, 384), "20m": (emu_20m, 4096)}  # model and number of token ids


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="demo")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each side, after five others")
    parser.add_argument("--threads", type=int, default=2, help="CPU cores of each side")
    a = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: a.threads])
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for side in SIDES:
        pipes[side], theirs = context.Pipe()
        context.Process(target=worker, args=(side, a.size, theirs), daemon=True).start()
    for side in SIDES:
        print(pipes[side].recv())
    samples: dict[str, list[tuple[float, float, float]]] = {side: [] for side in SIDES}
    for _ in range(5 + a.steps):
        for side in SIDES:
            pipes[side].send(True)
            samples[side].append(pipes[side].recv())
    print(f"{a.size}, {a.threads} threads, load {os.getloadavg()[0]:.1f}, {a.steps} steps of each\n")
    print("| | torch ms | emu_jax ms | torch / emu_jax |\n|---|---:|---:|---:|")
    for name, column, reduce in (
        ("wall time, median", 0, statistics.median),
        ("wall time, minimum", 0, min),
        ("CPU time, median", 1, statistics.median),
        ("CPU time, minimum", 1, min),
    ):
        torch, jax = (1e3 * reduce([sample[column] for sample in samples[side][5:]]) for side in SIDES)
        print(f"| {name} | {torch:.1f} | {jax:.1f} | {torch / jax:.2f} |")
    losses = np.array([[sample[2] for sample in samples[side][:COMPARED]] for side in SIDES])
    print(f"\nlosses of the first steps: {losses[0]}; largest relative difference "
          f"{np.max(np.abs(losses[0] / losses[1] - 1)):.1e}")  # fmt: skip


def worker(side: str, size: str, pipe: Connection) -> None:
    """Make one side, send its description, then do one step per message and send (wall s, CPU s, loss)."""
    make, vocabulary = SIZES[size]
    config = make(vocab_size=vocabulary)
    batch = BatchConfig(batch_size=ROWS, length=LENGTH, max_images=IMAGES, image_size=config.vision.image_size)
    stage = PretrainStage(config, batch, image_token_id=vocabulary - 1)
    with jax.set_mesh(make_mesh(MeshConfig())):
        step, description = {"torch": torch_step, "emu_jax": jax_step}[side](stage)
        pipe.send(description)
        with contextlib.suppress(EOFError):  # the parent has closed the pipe
            while pipe.recv():
                wall, cpu = time.perf_counter(), time.process_time()
                loss = step()
                pipe.send((time.perf_counter() - wall, time.process_time() - cpu, loss))


def packed_batch(config: EmuConfig) -> dict[str, np.ndarray]:
    """Return random rows of five documents each, an image and its caption; padding fills the rest."""
    rng = np.random.default_rng(0)
    queries, side, vocabulary = (
        config.causal_former.num_image_tokens,
        config.vision.image_size,
        config.decoder.vocab_size,
    )
    each = 2 + queries + CAPTION
    offset = np.arange(LENGTH) % each
    used = np.arange(LENGTH) < IMAGES * each
    row = np.where((offset > 0) & (offset <= queries), vocabulary - 1, rng.integers(3, vocabulary - 4, (ROWS, LENGTH)))
    row[:, offset == 0], row[:, offset == queries + 1] = vocabulary - 3, vocabulary - 2
    everywhere = lambda values, dtype: np.array(np.broadcast_to(values * used, (ROWS, LENGTH)), dtype)
    return {
        "tokens": np.where(used, row, vocabulary - 4).astype(np.int32),
        "positions": everywhere(offset, np.int32),
        "segment_ids": everywhere(np.arange(LENGTH) // each + 1, np.int32),
        "images": rng.integers(0, 256, (ROWS, IMAGES, side, side, 3)).astype(np.uint8),
        "num_images": np.full(ROWS, IMAGES, np.int32),
        "text_loss_mask": everywhere((offset > queries) & (offset < each - 1), np.float32),
        "regression_mask": everywhere(offset <= queries, np.float32),
        "source_ids": np.zeros((ROWS, LENGTH), np.int32),
    }


def initial_state(stage: PretrainStage) -> TrainState:
    """Return the state with which both sides start; the mesh is the current one."""
    mesh = jax.sharding.get_mesh()
    return create_state(stage, make_optimizer(OPTIMIZER, steps=STEPS), config=OPTIMIZER, mesh=mesh, seed=0)


def jax_step(stage: PretrainStage) -> tuple[Callable[[], float], str]:
    """Return the step that `train` compiles, and a description."""
    mesh = jax.sharding.get_mesh()
    state = initial_state(stage)
    batch = jax.device_put(packed_batch(stage.model), batch_shardings(stage.batch_spec(), mesh=mesh))
    start = time.monotonic()
    config = TrainConfig(steps=STEPS, optimizer=OPTIMIZER)
    compiled = compile_train_step(config, stage=stage, state=state, mesh=mesh)
    seconds = time.monotonic() - start
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))

    def step() -> float:
        nonlocal state
        state, metrics = compiled(state, batch)
        return metrics.value("loss")

    return step, f"jax {jax.__version__}: {parameters / 1e6:.4g}M parameters, step compiled in {seconds:.1f} s"


def torch_step(stage: PretrainStage) -> tuple[Callable[[], float], str]:
    """Return the step of the PyTorch model with the same initial weights, and a description."""
    import torch
    import transformers
    from torch_emu import TorchEmu, to_torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = TorchEmu(stage.model, image_token_id=stage.image_token_id)
    model.load(initial_state(stage).params)
    batch = to_torch(packed_batch(stage.model))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(B1, B2), eps=EPS, weight_decay=DECAY, fused=True
    )

    def step() -> float:
        optimizer.zero_grad()
        text, regression = model(batch)
        loss = text + regression
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step, f"torch {torch.__version__}, transformers {transformers.__version__}"


if __name__ == "__main__":
    main()
