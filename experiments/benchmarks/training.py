"""Measure the train step of a config on the devices of this machine: tokens per second, MFU, memory, compile time.

    python experiments/benchmarks/training.py --size=400m --rows=16
    python experiments/benchmarks/training.py --size=1b --rows=8 --json=record.json
    python experiments/benchmarks/training.py --size=tiny --rows=8 --steps=3           # anywhere, in a minute

The sizes are those of configs/scratch_*.py, in rows of 1,024 tokens without padding: 16 images of 34 tokens, each with
a caption of 30. The step is the one that `train` compiles, with the state of Adam, both losses and all parameters
trained. Batches are on the devices before the measurement, so it excludes data loading. MFU uses the model's own count
of useful operations and is reported if the peak of the device is known.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from configs import common
from emu_jax.data.batch import BatchConfig
from emu_jax.hardware import peak_flops
from emu_jax.io.files import write_json
from emu_jax.models.presets import emu_tiny
from emu_jax.sharding.mesh import make_mesh, parse_mesh
from emu_jax.training.config import OptimizerConfig
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.prefetch import batch_shardings
from emu_jax.training.runs.emu import read_emu_config
from emu_jax.training.stages.pretrain import PretrainStage
from emu_jax.training.state import create_state
from emu_jax.training.step import make_train_step

CAPTION = 30
FIRST_SPECIAL = 32000  # pad, [IMG], [/IMG], <image>
OPTIMIZER = OptimizerConfig(learning_rate=1e-4, warmup_steps=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "50m", "150m", "400m", "1b"), default="400m")
    parser.add_argument("--rows", type=int, default=8, help="rows of the global batch")
    parser.add_argument("--steps", type=int, default=20, help="timed steps, after three warm-up steps")
    parser.add_argument("--accumulation", type=int, default=1, help="microbatches per step")
    parser.add_argument(
        "--remat", choices=("none", "dots", "full"), help="of all three parts (default: as in the config)"
    )
    parser.add_argument("--mesh", default="data:1,fsdp:-1,tensor:1")
    parser.add_argument("--json", type=Path, help="file for the record")
    a = parser.parse_args()
    stage = make_stage(a.size, rows=a.rows, remat=a.remat)
    record = measure(stage, steps=a.steps, accumulation=a.accumulation, mesh=a.mesh)
    record = {"size": a.size, "rows": a.rows, "accumulation": a.accumulation, "remat": a.remat or "config"} | record
    for name, value in record.items():
        print(f"{name:22} {value:.4g}" if isinstance(value, float) else f"{name:22} {value}")
    if a.json:
        write_json(a.json, record)


def make_stage(size: str, *, rows: int, remat: str | None) -> PretrainStage:
    """Return the stage with both losses for the model of a config; the tiny one has short rows of small images."""
    if size == "tiny":
        model = emu_tiny(vocab_size=FIRST_SPECIAL + 4)
        batch = BatchConfig(batch_size=rows, length=2 * (2 + model.causal_former.num_image_tokens + CAPTION),
                            max_images=2, image_size=model.vision.image_size)  # fmt: skip
    else:
        config = import_module(f"configs.scratch_{size}").get_config("captions")
        for part in ("vision", "causal_former", "decoder") if remat else ():
            config.model[part].remat = remat
        config.model.decoder.vocab_size = common.LLAMA_VOCAB
        config.data.batch.batch_size = rows
        run = read_emu_config(config)
        model, batch = run.model, run.data.batch
    return PretrainStage(model, batch, image_token_id=FIRST_SPECIAL + 3)


def full_rows(stage: PretrainStage) -> dict[str, np.ndarray]:
    """Return a batch of random images and tokens without padding."""
    rng = np.random.default_rng(0)
    spec, queries = stage.batch_spec(), stage.model.causal_former.num_image_tokens
    B, L = spec["tokens"].shape
    I = spec["images"].shape[1]
    each = queries + 2 + CAPTION
    position = np.arange(L) % each
    tokens = rng.integers(3, FIRST_SPECIAL, (B, L)).astype(np.int32)
    tokens[:, position == 0] = FIRST_SPECIAL + 1
    tokens[:, (position > 0) & (position <= queries)] = FIRST_SPECIAL + 3
    tokens[:, position == queries + 1] = FIRST_SPECIAL + 2
    all_rows = lambda row, dtype: np.broadcast_to(row, (B, L)).astype(dtype)
    assert I * each == L, (L, I, each)
    return {
        "tokens": tokens,
        "positions": all_rows(position, np.int32),
        "segment_ids": all_rows(np.arange(L) // each + 1, np.int32),
        "images": rng.integers(0, 256, spec["images"].shape).astype(np.uint8),
        "num_images": np.full(B, I, np.int32),
        "text_loss_mask": all_rows((position > queries) & (position < each - 1), np.float32),
        "regression_mask": all_rows(position <= queries, np.float32),
        "source_ids": np.zeros((B, L), np.int32),
    }


def measure(stage: PretrainStage, *, steps: int, accumulation: int, mesh: str) -> dict[str, Any]:
    """Compile the step, run it, and return the measurements."""
    devices = make_mesh(parse_mesh(mesh))
    optimizer = make_optimizer(OPTIMIZER, steps=10_000)
    with jax.set_mesh(devices):
        state = create_state(stage, optimizer, config=OPTIMIZER, mesh=devices, seed=0)
        batch = jax.device_put(full_rows(stage), batch_shardings(stage.batch_spec(), mesh=devices))
        step = make_train_step(stage, config=OPTIMIZER, steps=10_000, accumulation=accumulation)
        start = time.monotonic()
        state_shardings = jax.tree.map(lambda x: x.sharding, state)
        out = (state_shardings, NamedSharding(devices, PartitionSpec()))
        compiled = jax.jit(step, donate_argnums=0, out_shardings=out).lower(state, batch).compile()
        compile_seconds = time.monotonic() - start
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        seconds, metrics = [], None
        for _ in range(3 + steps):
            start = time.monotonic()
            state, metrics = compiled(state, batch)
            jax.block_until_ready(metrics.values)
            seconds.append(time.monotonic() - start)
    assert metrics is not None
    assert np.isfinite(metrics.value("loss"))
    median = statistics.median(seconds[3:])
    tokens, images = stage.batch_spec()["tokens"].size, int(np.prod(stage.batch_spec()["images"].shape[:2]))
    flops = stage.step_flops(tokens=tokens, images=images)
    device, peak = jax.devices()[0], peak_flops(jax.devices()[0].device_kind)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    planned = compiled.memory_analysis()
    return {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "jax": f"{jax.__version__}, Python {platform.python_version()}",
        "parameters": parameters,
        "dtype": stage.model.dtype,
        "compile_seconds": compile_seconds,
        "step_seconds": median,
        "slowest_step_seconds": max(seconds[3:]),
        "tokens_per_second": tokens / median,
        "images_per_second": images / median,
        "model_tflops": flops / 1e12,
        "tflops_per_second": flops / 1e12 / median,
        "mfu": None if peak is None else flops / median / (peak * jax.device_count()),
        "peak_memory_gb": None if memory is None else memory / 1e9,
        "planned_memory_gb": (planned.argument_size_in_bytes + planned.temp_size_in_bytes) / 1e9,
        "loss": metrics.value("loss"),
    }


if __name__ == "__main__":
    main()
