"""Folders that Trainer, accelerate, Lightning, DeepSpeed, FSDP and diffusers leave: which files are the model."""

import json

import numpy as np
import pytest

from emu_jax.errors import UserError
from emu_jax.io.checkpoint_folder import weight_files
from emu_jax.io.tensor_files import open_checkpoint
from tests.convert.release import write_state

TRAINER = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin", "scaler.pt")
ACCELERATE = ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "sampler.bin", "custom_checkpoint_0.pkl")


@pytest.mark.parametrize(
    ("chosen", "others"),
    [
        (["model.safetensors"], TRAINER),
        (["model.safetensors"], (*ACCELERATE, "model_1.safetensors", "ema_model.safetensors")),
        (["pytorch_model.bin"], (*TRAINER, "ema_model.pt", "pytorch_model_1.bin")),
        (["model.safetensors"], ("pytorch_model.bin", "consolidated.safetensors", "adapter_model.safetensors")),
        (["pytorch_model_fsdp.bin"], ("optimizer.bin", "rng_state_1.pth")),
        (["mp_rank_00_model_states.pt"], ("zero_pp_rank_0_mp_rank_00_optim_states.pt", "bf16_zero_pp_rank_0.pt")),
        (["last.ckpt"], ("epoch=0-step=100.ckpt", "epoch=1-step=200.ckpt")),
        (["epoch=0-step=100.ckpt"], ()),
        (["Emu-pretrain.pt"], ("optimizer.pt", "ema.pt", "Emu-pretrain_ema.pt")),
        (["model.pth"], ("optim_0.pth",)),
        (["diffusion_pytorch_model.safetensors"], ("diffusion_pytorch_model.fp16.safetensors", "model.ckpt")),
        (["diffusion_pytorch_model.fp16.safetensors"], ("diffusion_pytorch_model.bin",)),
        (["diffusion_pytorch_model.bin"], ("diffusion_pytorch_model.fp16.bin",)),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], ("optimizer.pt",)),
        (["pytorch_model-00001-of-00001.bin"], ("training_args.bin",)),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], ()),
        (["eva.safetensors", "llama.safetensors"], ()),
        (["schema.pt"], ()),
    ],
)
def test_the_model_is_chosen_and_other_files_are_listed(tmp_path, chosen, others):
    for name in (*chosen, *others, "trainer_state.json", "config.json"):
        (tmp_path / name).write_bytes(b"")
    files, ignored = weight_files(tmp_path)
    assert [file.name for file in files] == chosen
    readable = [n for n in others if n.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt"))]
    assert sorted(ignored) == sorted(readable)


@pytest.mark.parametrize(
    "index",
    [
        "model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "pytorch_model.bin.index.json",
    ],
)
def test_an_index_names_its_shards(tmp_path, index):
    shards = ["a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"]
    for name in (*shards, "optimizer.pt", "model.ckpt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / index).write_text(json.dumps({"weight_map": {"x": shards[0], "y": shards[1]}}))
    files, ignored = weight_files(tmp_path)
    assert [file.name for file in files] == shards
    assert ignored == ["model.ckpt", "optimizer.pt"]


def test_the_plain_index_wins_over_its_variant(tmp_path):
    for name in ("plain", "half"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    for infix, shard in ((".fp16", "half"), ("", "plain")):
        index = tmp_path / f"diffusion_pytorch_model.safetensors.index{infix}.json"
        index.write_text(json.dumps({"weight_map": {"x": f"{shard}.safetensors"}}))
    assert [file.name for file in weight_files(tmp_path)[0]] == ["plain.safetensors"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("optimizer.pt", "scheduler.pt"), "has no model, only optimizer.pt"),
        (("a.ckpt", "b.ckpt"), "has 2 checkpoints"),
        (("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"), "2 shards .* of 3"),
        (("zero_pp_rank_0_mp_rank_00_model_states.pt",), "zero_to_fp32.py"),
        (("pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"), "dcp_to_torch"),
        (("__0_0.distcp", ".metadata"), "dcp_to_torch"),
        (("checkpoint-500/model.safetensors", "checkpoint-1000/model.safetensors"), "such as .*checkpoint-1000"),
    ],
)
def test_folders_without_one_model_are_explained(tmp_path, names, message):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=message):
        weight_files(tmp_path)


def test_the_newest_states_of_deepspeed_are_found(tmp_path):
    for step in ("global_step10", "global_step20"):
        (tmp_path / step).mkdir()
        (tmp_path / step / "mp_rank_00_model_states.pt").write_bytes(b"")
    (tmp_path / "latest").write_text("global_step20\n")
    assert weight_files(tmp_path)[0] == [tmp_path / "global_step20" / "mp_rank_00_model_states.pt"]


def test_ignored_files_are_one_note(tmp_path):
    write_state(tmp_path, {"a": np.zeros(2, np.float32)})
    for name in TRAINER:
        (tmp_path / name).write_bytes(b"not read")
    opened = open_checkpoint(tmp_path)
    assert opened.tensors.keys() == {"a"}
    assert len(opened.notes) == 1
    assert all(name in opened.notes[0] for name in TRAINER)
