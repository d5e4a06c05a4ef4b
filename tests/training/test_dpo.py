"""The stage `dpo` on preferences about images of the synthetic world: data, loss, and a run of the command."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.cli import prepare_data, train
from emu_jax.data.batch import BatchConfig
from emu_jax.data.document import Document, Layout, Role, Text
from emu_jax.data.loader.config import DataConfig, SetConfig
from emu_jax.data.loader.pipeline import make_loader
from emu_jax.data.sequence import build_sequence
from emu_jax.data.sequence_config import Answers, SequenceConfig
from emu_jax.data.tokenizer import Tokenizer, train_tokenizer
from emu_jax.demo.world.media import encode_png
from emu_jax.demo.world.questions import questions
from emu_jax.demo.world.rendering import render
from emu_jax.demo.world.scenes import Color, sample_scene
from emu_jax.errors import UserError
from emu_jax.layers.linear import LoraConfig
from emu_jax.sharding.specs import unbox
from emu_jax.training.log import read_metrics
from emu_jax.training.partition import flatten, unflatten
from emu_jax.training.stages.dpo import DpoConfig, DpoStage, without_adapters
from emu_jax.training.stages.pretrain import PretrainConfig
from tests.training.test_emu_step import small_emu

PAIRS, SIZE = 48, 8
CONFIG = """
from configs import common
from emu_jax.layers.linear import LoraConfig

def get_config():
    config = common.base("emu_tiny", steps=STEPS, batch_size=8, length=128, max_images=4)
    config.model.vision.update(dict(image_size=8, patch_size=4, width=16, num_layers=1, num_heads=2, mlp_dim=16))
    config.model.causal_former.update(dict(width=16, num_heads=2, head_dim=8, mlp_dim=16))
    config.model.decoder.update(dict(width=16, num_layers=1, num_heads=2, num_kv_heads=2, mlp_dim=16))
    config.model.lora = common.fields_of(LoraConfig(rank=4, dropout=0.0))
    config.data.batch.image_size = 8
    config.data.pool = 16
    config.data.sets = common.sets(dict(path="FOLDER/set", name="world"))
    config.tokenizer = "FOLDER/t.model"
    config.instruct = True
    config.stage = "dpo"
    config.dpo.beta = 0.5
    config.pretrain.trainable = TRAINABLE
    config.train.optimizer.schedule = "constant"
    config.train.optimizer.learning_rate = 3e-2
    config.train.optimizer.warmup_steps = 0
    config.train.log_every = 1
    config.train.mesh.fsdp = 1
    config.train.mesh.data = -1
    return config
"""


def write_config(file, folder, *, steps=30, trainable=("lora",)):
    replaced = {"FOLDER": str(folder), "STEPS": str(steps), "TRAINABLE": repr(trainable)}
    text = CONFIG
    for name, value in replaced.items():
        text = text.replace(name, value)
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder with a tokenizer and a prepared set: questions on colors, with the right and a wrong answer."""
    folder, rng = tmp_path_factory.mktemp("dpo"), np.random.default_rng(0)
    (folder / "images").mkdir()
    rows = []
    while len(rows) < PAIRS:
        scene = sample_scene(rng)
        asked = [one for one in questions(scene, rng) if one.answer in {color.value for color in Color}]
        if not asked:
            continue
        name = f"{len(rows)}.png"
        (folder / "images" / name).write_bytes(encode_png(render(scene, rng, size=SIZE)))
        wrong = next(color.value for color in Color if color.value != asked[0].answer)
        rows.append({"prompt": asked[0].question, "chosen": asked[0].answer, "rejected": wrong, "images": [name]})
    (folder / "preferences.json").write_text(json.dumps(rows))
    texts = [f"{row['prompt']} {row['chosen']} {row['rejected']}" for row in rows]
    train_tokenizer(texts * 4, folder / "t.model", vocab_size=300)
    source = ["--source=preferences", f"--input={folder / 'preferences.json'}"]
    prepare_data.main([*source, f"--output={folder / 'set'}", f"--image-size={SIZE}", "--min-side=4"])
    return folder


@pytest.fixture(scope="module")
def batch_and_stage(world):
    """Return one packed batch, and a stage without dropout."""
    tokenizer = Tokenizer.load(world / "t.model", instruct=True)
    emu = small_emu()
    decoder = dataclasses.replace(emu.decoder, vocab_size=tokenizer.vocab_size)
    model = dataclasses.replace(emu, decoder=decoder, lora=LoraConfig(rank=2, dropout=0.0))
    config = DataConfig(
        sets=(SetConfig(str(world / "set")),),
        batch=BatchConfig(batch_size=2, length=128, max_images=4, image_size=SIZE),
        num_image_tokens=model.causal_former.num_image_tokens,
        answers=Answers.BOTH,
        pool=8,
        prefetch=0,
    )
    loader = make_loader(config, tokenizer=tokenizer, seed=0, process_index=0, process_count=1)
    stage = DpoStage(
        model,
        config.batch,
        image_token_id=tokenizer.image_token_id,
        config=PretrainConfig(trainable=("lora",)),
        dpo=DpoConfig(beta=0.3),
    )
    return next(loader), stage, tokenizer


def test_a_batch_has_pairs_with_a_loss_on_the_answers_alone(batch_and_stage):
    batch, _, tokenizer = batch_and_stage
    for row in range(2):
        count = batch["segment_ids"][row].max()
        assert count >= 2
        assert count % 2 == 0
        assert batch["num_images"][row] == count
        answers = []
        for segment in range(1, count + 1):
            inside = batch["segment_ids"][row] == segment
            np.testing.assert_array_equal(batch["positions"][row][inside], np.arange(inside.sum()))
            labels = np.roll(batch["tokens"][row], -1)[inside & (batch["text_loss_mask"][row] > 0)]
            assert labels[-1] == tokenizer.eos_id
            answers.append(tokenizer.decode(labels[:-1].tolist()).strip())
        assert set(answers) <= {color.value for color in Color}
        assert all(chosen != rejected for chosen, rejected in zip(answers[::2], answers[1::2], strict=True))


def test_the_loss_is_that_of_separate_documents(batch_and_stage):
    batch, stage, _ = batch_and_stage
    rng = np.random.default_rng(0)
    spec = jax.eval_shape(stage.init, jax.random.key(0))
    params = unflatten(
        {path: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype) for path, x in flatten(unbox(spec)).items()}
    )
    output = jax.jit(functools.partial(stage.losses, deterministic=True))(params, batch, jax.random.key(0))

    @jax.jit
    def log_probability(params, tokens, images, mask):
        logits = stage.emu.apply({"params": params}, tokens, images).logits[0, :-1, : stage.vocab_size]
        return jnp.sum(jax.nn.log_softmax(logits)[jnp.arange(mask.shape[1] - 1), tokens[0, 1:]] * mask[0, :-1])

    losses, margins = [], []
    for row in range(2):
        changes = []
        for segment in range(1, batch["segment_ids"][row].max() + 1):
            inside = batch["segment_ids"][row] == segment
            n = inside.sum()
            tokens, mask = np.zeros((2, 1, 64), np.int32)
            tokens[0, :n], mask[0, :n] = batch["tokens"][row][inside], batch["text_loss_mask"][row][inside]
            images = batch["images"][row, segment - 1][None, None]
            both = [log_probability(p, tokens, images, mask) for p in (params, without_adapters(params))]
            changes.append(float(both[0] - both[1]))
        for chosen, rejected in zip(changes[::2], changes[1::2], strict=True):
            margins.append(stage.dpo.beta * (chosen - rejected))
            losses.append(np.log1p(np.exp(-margins[-1])))
    assert np.abs(margins).max() > 0.01
    assert float(stage.loss_denominators(batch)["preference"]) == len(losses)
    np.testing.assert_allclose(float(output.sums["preference"]), sum(losses), rtol=1e-4)
    np.testing.assert_allclose(float(output.metrics["reward/margin"].compute()), np.mean(margins), rtol=1e-3, atol=1e-4)


def test_a_run_of_the_command_increases_the_margin(world, tmp_path):
    config = write_config(tmp_path / "dpo.py", world)
    train.main([f"--config={config}", f"--workdir={tmp_path / 'run'}"])
    records = [record for record in read_metrics(tmp_path / "run") if "reward/margin" in record]
    assert records[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)  # the adapters start as zero
    assert records[0]["reward/margin"] == pytest.approx(0, abs=1e-5)
    assert np.mean([record["reward/margin"] for record in records[-5:]]) > 0.2
    assert np.mean([record["reward/accuracy"] for record in records[-5:]]) > 0.6


def test_other_parameters_than_adapters_are_refused(world, tmp_path):
    config = write_config(tmp_path / "dpo.py", world, trainable=("lora", "^lm_head/"))
    with pytest.raises(UserError, match="trains LoRA adapters only, but the config trains lm_head"):
        train.main([f"--config={config}", f"--workdir={tmp_path / 'run'}"])


def test_a_preference_is_a_chat_with_the_chosen_answer_in_other_stages(world):
    tokenizer = Tokenizer.load(world / "t.model", instruct=True)
    question = Text("what color is it?", Role.USER)
    chat = (question, Text("red", Role.ASSISTANT))
    segments = (*chat, Text("blue", Role.REJECTED))
    config = SequenceConfig(length=64, max_images=1, num_image_tokens=4)
    sequences = [
        build_sequence(Document(s, "x", "0", layout), config=config, tokenizer=tokenizer, rng=np.random.default_rng(0))
        for s, layout in ((segments, Layout.PREFERENCE), (chat, Layout.CHAT))
    ]
    np.testing.assert_array_equal(sequences[0].tokens, sequences[1].tokens)
    np.testing.assert_array_equal(sequences[0].text_loss_mask, sequences[1].text_loss_mask)
