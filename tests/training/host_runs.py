"""Small runs of the real stages by `python -m emu_jax train` in several processes on this machine."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emu_jax.convert.diffusion_folder import SCHEDULER, UNET, VAE, write_part
from emu_jax.convert.diffusion_table import unet_table, vae_table
from emu_jax.data.prepare.decoder_shards import DecoderShards
from emu_jax.data.tokenizer import train_tokenizer
from emu_jax.diffusion.config import CROSS_DOWN, CROSS_UP, UNetConfig, VAEConfig
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.io.tensors import tensor_of
from emu_jax.training.log import read_metrics
from tests.data.conftest import make_set
from tests.hosts import start_hosts

STAGES = ("pretrain", "instruct", "vae", "visual_decoder")
SECONDS = 400  # far more than a run needs; a process that hangs is killed then
UNET_SIZES = {
    "block_out_channels": (8,),
    "down_block_types": (CROSS_DOWN,),
    "up_block_types": (CROSS_UP,),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}
VAE_SIZES = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}

EMU = """
def get_config():
    config = common.base("emu_tiny", steps=8, batch_size=8, length=48, max_images=3)
    config.tokenizer = {tokenizer!r}
    config.data.sets = common.sets(*{sets!r})
    config.data.batch.image_size = config.model.vision.image_size = 8
    config.data.pool = 8
    config.model.vision.patch_size = 4
    config.model.vision.width = config.model.causal_former.width = config.model.decoder.width = 16
    config.model.vision.num_heads = config.model.causal_former.num_heads = config.model.decoder.num_heads = 2
    config.model.vision.num_layers = config.model.decoder.num_layers = 1
    config.model.decoder.num_kv_heads = 2
    config.model.causal_former.head_dim = 8
    config.model.causal_former.dropout = 0.0
    config.model.causal_former.mlp_dim = config.model.decoder.mlp_dim = 16
    config.evaluation.sets = common.held_out({{"path": {held_out!r}}})
    config.evaluation.batches = 2
    {stage}
    return with_checkpoints(config)
"""
DECODER = """
def get_config():
    return with_checkpoints({call})
"""
HEADER = """
from configs import common


def with_checkpoints(config):
    config.train.log_every = 3
    config.train.evaluate_every = 4
    config.train.checkpoint.every_steps = 2
    config.train.checkpoint.keep = 20
    config.train.optimizer.eps = 1e-3
    return config

"""


@dataclass(frozen=True)
class World:
    """Folders with prepared sets, decoder examples and a decoder, and a config file per stage."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "World":
        sets = {
            name: str(make_set(folder, name, first)) for name, first in (("pairs", 0), ("pages", 300), ("chats", 600))
        }
        train_tokenizer([f"number {n} and on and on end" for n in range(200)], folder / "t.model", vocab_size=300)
        rng = np.random.default_rng(0)
        shapes = {"conditioning": (4, 12), "latent_mean": (4, 4, 4), "latent_log_variance": (4, 4, 4)}
        examples = [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(53)]
        unconditional = rng.normal(size=(4, 12))
        shards = DecoderShards(folder / "examples", len(examples), 16, "float32", unconditional, settings={})
        shards.start()
        for shard in shards.missing():
            shards.write(shard, [examples[number] for number in shards.span(shard)])
        shards.finish()
        (folder / "decoder").mkdir()
        write_part(folder / "decoder", SCHEDULER, NoiseSchedule().to_diffusers())
        unet, vae = UNetConfig(sample_size=4, **UNET_SIZES), VAEConfig(**VAE_SIZES)
        for part, sizes, table in ((UNET, unet, unet_table(unet)), (VAE, vae, vae_table(vae))):
            arrays = [(row, rng.normal(scale=0.2, size=row.torch_shape).astype(np.float32)) for row in table]
            write_part(folder / "decoder", part, sizes.to_diffusers(), [tensor_of(row.torch, x) for row, x in arrays])
        mixed = [{"path": sets["pairs"]}, {"path": sets["pages"]}]
        emu = {"tokenizer": str(folder / "t.model"), "held_out": sets["pairs"]}
        texts = {
            "pretrain": EMU.format(**emu, sets=mixed, stage=""),
            "instruct": EMU.format(
                **emu, sets=[{"path": sets["chats"]}], stage='config.stage, config.instruct = "instruct", True'
            ),
            "vae": DECODER.format(
                call=f"common.autoencoder(vae={VAE_SIZES}, unet={UNET_SIZES}, sets=({sets['pairs']!r},), "
                "batch_size=8, steps=8)"
            ),
            "visual_decoder": DECODER.format(
                call=f"common.visual_decoder(decoder={str(folder / 'decoder')!r}, "
                f"examples={str(folder / 'examples')!r}, batch_size=8, steps=8)"
            ),
        }
        for stage, text in texts.items():
            (folder / f"{stage}.py").write_text(HEADER + text)
        return cls(folder)


def start(
    world: World,
    stage: str,
    workdir: Path,
    *words: str,
    root: Path,
    processes: int = 1,
    devices: int = 1,
    tensor: int = 1,
) -> list[subprocess.Popen[str]]:
    """Start the processes of a run."""
    command = [
        sys.executable, "-m", "emu_jax", "train", f"--config={world.folder / stage}.py", f"--workdir={workdir}",
        f"--config.train.mesh.tensor={tensor}", *words,
    ]  # fmt: skip
    return start_hosts(command, count=processes, devices=devices, root=root)


def finish(running: Sequence[subprocess.Popen[str]], *, code: int | None = 0) -> list[str]:
    """Wait for the processes, and return what each wrote to stderr. `code` is their exit code; None for any."""
    try:
        ends = [process.communicate(timeout=SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
    errors = [error for _, error in ends]
    assert code is None or {process.returncode for process in running} == {code}, "\n\n".join(errors)
    return errors


def kill(running: Sequence[subprocess.Popen[str]]) -> None:
    """End processes as `kill -9` does."""
    for process in running:
        process.send_signal(signal.SIGKILL)
    for process in running:
        process.communicate()


def wait_for(condition, running: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until `condition()` is true; fail if a process ends before."""
    limit = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < limit
        assert all(process.poll() is None for process in running), finish(running, code=None)
        time.sleep(0.05)


def records(workdir: Path) -> list[dict]:
    """Return the metrics of a run that do not depend on the speed of the machine."""
    speed = re.compile(r"time|.*_per_second|data_wait|seconds_left|host_memory_gb|mfu")
    return [{name: x for name, x in one.items() if not speed.fullmatch(name)} for one in read_metrics(workdir)]


def fingerprints(workdir: Path, step: int) -> dict:
    """Return the checksums of all arrays of a checkpoint."""
    found = json.loads((workdir / "checkpoints" / str(step) / "fingerprints" / "metadata").read_text())
    return {name: value for name, value in found.items() if name.startswith("[")}
