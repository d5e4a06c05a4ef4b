"""Runs of the visual decoder: examples computed in each step equal stored ones, and give the same run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from emu_jax.checkpoints.model_directory import boxed_shapes, save_model
from emu_jax.config import to_dict
from emu_jax.convert.diffusion_folder import SCHEDULER, UNET, VAE, write_part
from emu_jax.convert.diffusion_table import unet_table, vae_table
from emu_jax.convert.load import load_model
from emu_jax.convert.visual_decoder import load_visual_decoder
from emu_jax.data.loader.visual_decoder_examples import Condition, DecoderExamples, WeightedSet
from emu_jax.data.tokenizer import Tokenizer, train_tokenizer
from emu_jax.diffusion.config import CROSS_DOWN, CROSS_UP, UNetConfig, VAEConfig
from emu_jax.diffusion.schedule import NoiseSchedule
from emu_jax.errors import UserError
from emu_jax.generation.api import load
from emu_jax.generation.captioned_images import CaptionedImages
from emu_jax.generation.decoder_examples import as_text, prepare_examples
from emu_jax.generation.prompt import build_prompt
from emu_jax.io.tensors import tensor_of
from emu_jax.models.config import EmuConfig
from emu_jax.models.presets import emu_tiny
from emu_jax.sharding.mesh import MeshConfig, make_mesh
from emu_jax.sharding.specs import unbox
from emu_jax.training.config import OptimizerConfig, TrainConfig
from emu_jax.training.evaluation import EvaluationConfig, HeldOutSet
from emu_jax.training.log import read_metrics
from emu_jax.training.loop import train
from emu_jax.training.optimizer import make_optimizer
from emu_jax.training.partition import flatten
from emu_jax.training.runs.registry import open_run
from emu_jax.training.runs.visual_decoder import ComputedExamples, ComputedSource, VisualDecoderRunConfig
from emu_jax.training.stages.frozen import FrozenModels
from emu_jax.training.stages.visual_decoder import VisualDecoderStage
from emu_jax.training.state import abstract_state
from tests.data.conftest import make_set

LONGEST = 30  # characters; some captions of the set are longer
BATCH, SEED = 8, 5


@dataclasses.dataclass(frozen=True)
class World:
    """Folders with a small Emu, a decoder for narrower embeddings, a prepared set, and examples of each condition."""

    emu: Path
    decoder: Path
    pairs: Path
    stored: dict[Condition, Path]
    sizes: EmuConfig

    def computed(self, condition: Condition, **fields) -> ComputedExamples:
        chosen = {"max_caption_length": LONGEST, "prompt_length": 40} | fields
        return ComputedExamples(emu=str(self.emu), sets=(WeightedSet(str(self.pairs)),), condition=condition, **chosen)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    pairs = make_set(folder, "pairs", 0)
    lines = [f"number {n} and on and on end" for n in range(200)]
    tokenizer = train_tokenizer(lines, folder / "t.model", vocab_size=300)
    tiny = emu_tiny(vocab_size=tokenizer.vocab_size)
    vision = dataclasses.replace(tiny.vision, image_size=8, patch_size=4, width=16, num_layers=1, num_heads=2)
    former = dataclasses.replace(tiny.causal_former, width=16, num_heads=2, head_dim=8, mlp_dim=16)
    decoder = dataclasses.replace(tiny.decoder, width=16, num_layers=1, num_heads=2, num_kv_heads=2, mlp_dim=16)
    config = dataclasses.replace(tiny, vision=vision, causal_former=former, decoder=decoder)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.2, size=leaf.shape).astype(np.float32), unbox(boxed_shapes(config))
    )
    save_model(folder / "emu", config, params, tokenizer=folder / "t.model")
    unet = UNetConfig(
        sample_size=4,
        block_out_channels=(8,),
        down_block_types=(CROSS_DOWN,),
        up_block_types=(CROSS_UP,),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=12,
    )
    vae = VAEConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, sample_size=8)
    (folder / "decoder").mkdir()
    write_part(folder / "decoder", SCHEDULER, NoiseSchedule().to_diffusers())
    for part, sizes, table in ((UNET, unet, unet_table(unet)), (VAE, vae, vae_table(vae))):
        tensors = [
            tensor_of(row.torch, rng.normal(scale=0.2, size=row.torch_shape).astype(np.float32)) for row in table
        ]
        write_part(folder / "decoder", part, sizes.to_diffusers(), tensors)
    made = load_visual_decoder(folder / "decoder")
    stored, pipeline = {}, load(folder / "emu")
    for condition in Condition:
        stored[condition] = folder / condition.value
        count = prepare_examples(
            pipeline, made, sets=[str(pairs)], output=stored[condition], condition=condition,
            image_size=8, max_caption_length=LONGEST, batch_size=16, dtype="float32",
        )  # fmt: skip
        assert 20 < count < 61  # some captions are too long
    return World(folder / "emu", folder / "decoder", pairs, stored, config)


@pytest.mark.e2e
@pytest.mark.parametrize("condition", Condition)
def test_computed_batches_equal_stored_ones(world, condition):
    decoder = load_visual_decoder(world.decoder, cross_attention_dim=16)
    source = ComputedSource.open(world.computed(condition), mesh=MeshConfig())
    frozen = source.frozen(decoder)
    stored = DecoderExamples.open(world.stored[condition])
    np.testing.assert_allclose(source.unconditional, stored.unconditional, rtol=0, atol=1e-6)
    params = {"emu": jax.device_get(source.emu_params), "vae": decoder.params["vae"]}
    compute = jax.jit(lambda batch: (frozen.conditioning(params, batch), frozen.posterior(params, batch)))
    computed = source.loader(decoder, batch_size=BATCH, seed=SEED)()
    expected = stored.loader(batch_size=BATCH, seed=SEED)
    spec = frozen.batch_spec(batch_size=BATCH, target_size=8)
    for _ in range(8):  # more than one epoch
        batch, examples = next(computed), next(expected)
        assert {n: (a.shape, a.dtype) for n, a in batch.items()} == {n: (s.shape, s.dtype) for n, s in spec.items()}
        conditioning, posterior = compute(batch)
        for ours, name in (
            (conditioning, "conditioning"),
            (posterior.mean, "latent_mean"),
            (posterior.log_variance, "latent_log_variance"),
        ):
            np.testing.assert_allclose(ours, examples[name], rtol=0, atol=1e-5 * np.abs(examples[name]).max())
        # The difference between images is much larger.
        assert np.ptp(conditioning, axis=0).max() > 1e-3 * np.abs(conditioning).max()


def run_of(world: World, **source) -> VisualDecoderRunConfig:
    optimizer = OptimizerConfig(learning_rate=1e-3, eps=1e-3, warmup_steps=0, ema_decay=0.5)
    config = TrainConfig(steps=3, seed=SEED, log_every=1, optimizer=optimizer)
    return VisualDecoderRunConfig("visual_decoder", str(world.decoder), BATCH, config, **source)


@pytest.mark.e2e
@pytest.mark.parametrize("condition", Condition)
def test_runs_on_computed_and_stored_examples_are_equal(world, condition, tmp_path, capsys):
    results, losses = [], []
    runs = {"stored": {"examples": str(world.stored[condition])}, "computed": {"computed": world.computed(condition)}}
    for name, source in runs.items():
        run = open_run(to_dict(run_of(world, **source)))
        result = train(run.train, stage=run.stage, data=run.data, workdir=tmp_path / name, initialize=run.initialize)
        run.finish(tmp_path / name, result)
        results.append(result)
        losses.append([r["loss"] for r in read_metrics(tmp_path / name) if "loss" in r])
        log = capsys.readouterr().err
        assert f"the U-Net starts from the weights in {world.decoder}" in log
        assert "8 projections are newly initialized" in log
        assert "attn2.to_k.weight" in log
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(losses[0]) == 3
    params, other = (flatten(jax.device_get(result.params["unet"])) for result in results)
    for path, leaf in params.items():
        np.testing.assert_allclose(other[path], leaf, rtol=0, atol=1e-5, err_msg=path)

    # Frozen parameters do not change.
    computed = results[1]
    emu = flatten(load_model(world.emu).params)
    frozen = {
        path: leaf for path, leaf in flatten(jax.device_get(computed.params)).items() if not path.startswith("unet")
    }
    assert {path.split("/")[0] for path in frozen} == {"emu", "vae"}
    for path, leaf in frozen.items():
        if path.startswith("emu/"):
            np.testing.assert_array_equal(leaf, emu[path.removeprefix("emu/")])
    assert set(computed.ema) == {"unet"}
    # The final folder has the moving average of the U-Net, and the autoencoder of the initial folder.
    final, initial = (load_visual_decoder(path) for path in (tmp_path / "computed" / "visual_decoder", world.decoder))
    jax.tree.map(np.testing.assert_array_equal, final.params["unet"], jax.device_get(computed.ema["unet"]))
    jax.tree.map(np.testing.assert_array_equal, final.params["vae"], initial.params["vae"])


@pytest.mark.e2e
@pytest.mark.parametrize("source", ["stored", "computed"])
def test_held_out_losses_are_evaluated_in_training(world, source, tmp_path):
    condition = Condition.PREDICTED
    stored = source == "stored"
    examples = {"examples": str(world.stored[condition])} if stored else {"computed": world.computed(condition)}
    path = str(world.stored[condition] if stored else world.pairs)
    held_out = EvaluationConfig(sets=(HeldOutSet(path, name="held_out"),), batches=2)
    run = open_run(to_dict(dataclasses.replace(run_of(world, **examples), evaluation=held_out)))
    train(
        dataclasses.replace(run.train, steps=2, evaluate_every=1), stage=run.stage, data=run.data, workdir=tmp_path,
        initialize=run.initialize, evaluations=run.evaluations,
    )  # fmt: skip
    first, last = (r for r in read_metrics(tmp_path) if "eval/held_out/loss" in r)
    assert (first["step"], last["step"]) == (1, 2)
    assert np.isfinite(last["eval/held_out/loss"])
    assert last["eval/held_out/loss"] != first["eval/held_out/loss"]


def test_frozen_parameters_have_no_moments(world):
    decoder = load_visual_decoder(world.decoder, cross_attention_dim=16)
    frozen = FrozenModels(world.sizes, decoder.vae.config, 0, Condition.PREDICTED, prompt_length=40)
    stage = VisualDecoderStage(
        decoder.unet.config, BATCH, unconditional=np.zeros((4, 16)), scaling_factor=1.0, frozen=frozen
    )
    optimizer, mesh = make_optimizer(OptimizerConfig(), steps=100), make_mesh(MeshConfig())
    with jax.set_mesh(mesh):
        state = abstract_state(stage, optimizer, config=OptimizerConfig(), mesh=mesh)
    assert set(state.params) == {"unet", "vae", "emu"}
    assert set(state.params["emu"]) == {"decoder", "regression_head"}  # for predictions from a caption
    count = len(jax.tree.leaves(state.params["unet"]))
    assert len(jax.tree.leaves(state.opt_state)) == 2 * count + 2  # both moments, and two counts


def test_invalid_configs_and_sets_are_one_clear_error(world, tmp_path):
    with pytest.raises(UserError, match=r"either config\.examples or config\.computed"):
        run_of(world)
    with pytest.raises(UserError, match="prompt_length must be between 3 and"):
        ComputedSource.open(world.computed(Condition.PREDICTED, prompt_length=2), mesh=MeshConfig())
    with pytest.raises(UserError, match="holds no decoder examples"):
        open_run(to_dict(run_of(world, examples=str(tmp_path))))
    chosen = {"target_size": 8, "image_size": 8, "prompt_length": 40, "max_caption_length": 3}
    tokenizer = Tokenizer.load(world.emu / "tokenizer.model")
    images = CaptionedImages((WeightedSet(str(world.pairs)),), tokenizer, Condition.PREDICTED, **chosen)
    with pytest.raises(UserError, match="is an image with a caption of at most 3 characters"):
        images.loader(batch_size=BATCH, seed=0)
    with pytest.raises(UserError, match="does not divide among 3 processes"):
        images.loader(batch_size=BATCH, seed=0, process_count=3)


def test_a_caption_that_looks_like_a_file_name_is_text(world):
    tokenizer = Tokenizer.load(world.emu / "tokenizer.model")
    sizes = {"tokenizer": tokenizer, "num_image_tokens": 4, "image_size": 8, "open_image": True}
    prompt = build_prompt(as_text("IMG_0001.jpg ", tokenizer), **sizes)
    assert prompt.tokens.tolist() == [tokenizer.bos_id, *tokenizer.encode("IMG_0001.jpg"), tokenizer.boi_id]
    np.testing.assert_array_equal(
        build_prompt(as_text("number 7", tokenizer), **sizes).tokens, build_prompt(["number 7"], **sizes).tokens
    )
    assert build_prompt(as_text("  ", tokenizer), **sizes).tokens.tolist() == [tokenizer.bos_id, tokenizer.boi_id]
