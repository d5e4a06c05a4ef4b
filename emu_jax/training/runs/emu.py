"""Training runs of an Emu: the stages `pretrain`, `caption_warmup`, `instruct` and `dpo`."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from emu_jax.bounds import Checked, CountOrZero
from emu_jax.checkpoints.model_config import find_config, read_config
from emu_jax.checkpoints.model_directory import boxed_shapes, params_directory
from emu_jax.config import from_config_dict
from emu_jax.data.loader.config import DataConfig, Frames, SetConfig
from emu_jax.data.loader.pipeline import Loader, make_loader
from emu_jax.data.loader.read_plan import plans_from_states
from emu_jax.data.sequence_config import Answers
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError
from emu_jax.hardware import generation
from emu_jax.io.local_copy import local_copy
from emu_jax.models.config import EmuConfig
from emu_jax.sharding.specs import unbox
from emu_jax.training.chips import ChipConfig
from emu_jax.training.config import TrainConfig
from emu_jax.training.evaluation import EvaluationConfig, HeldOutSet, held_out_losses
from emu_jax.training.loop import DataFactory
from emu_jax.training.partition import flatten, matcher
from emu_jax.training.runs.run import Run
from emu_jax.training.stages.dpo import DpoConfig, DpoStage
from emu_jax.training.stages.pretrain import NEW_TOKEN_TABLES, PretrainConfig, PretrainStage

PRETRAIN, CAPTION_WARMUP, INSTRUCT, DPO = EMU_STAGES = ("pretrain", "caption_warmup", "instruct", "dpo")


@dataclasses.dataclass(frozen=True)
class EmuRunConfig(Checked):
    """Complete configuration of a run.

    Attributes:
      model: sizes; a `decoder.vocab_size` of 0 takes the size from the tokenizer.
      tokenizer: path of a SentencePiece model.
      data: data sets, and the shape of a batch.
      train: length, optimizer, mesh, checkpoints.
      stage: `pretrain` (both losses), `caption_warmup` (only the text loss, until the visual embeddings are
        informative), `instruct` (chats) or `dpo` (preferences, with LoRA).
      pretrain: weight of the regression loss, and trainable parameters.
      dpo: loss of the stage `dpo`.
      instruct: True if the tokenizer has the tokens `[USER]` and `[ASSISTANT]`.
      chips: settings for some TPU generations.
      evaluation: held-out sets and benchmarks.
      samples_per_step: documents per step of the published recipe, for `inspect-data`; 0 if there is none.
    """

    model: EmuConfig
    tokenizer: str
    data: DataConfig
    train: TrainConfig
    stage: str = PRETRAIN
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    dpo: DpoConfig = dataclasses.field(default_factory=DpoConfig)
    instruct: bool = False
    chips: tuple[ChipConfig, ...] = ()
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    samples_per_step: CountOrZero = 0


def open_emu_run(config: Mapping[str, Any] | Any) -> Run:
    """Return the run of a config, on the devices of this machine.

    Raises:
      UserError: invalid fields, or fields that contradict each other or the tokenizer.
    """
    run = read_emu_config(config)
    tokenizer = Tokenizer.load(run.tokenizer, instruct=run.instruct)
    run = with_vocabulary(run, vocab_size=tokenizer.vocab_size)
    run = for_chip(run, device_kind=jax.devices()[0].device_kind)
    stage = make_stage(run, image_token_id=tokenizer.image_token_id, token_sources=tokenizer.role_sources)
    load = functools.partial(_held_out_data, run, tokenizer)
    return Run(
        config=run,
        train=without_decay(run),
        stage=stage,
        data=emu_data(run, tokenizer=tokenizer),
        tokenizer=local_copy(run.tokenizer),
        evaluations=held_out_losses(run.evaluation, stage, load, mesh=run.train.mesh),
    )


def read_emu_config(config: Mapping[str, Any] | Any) -> EmuRunConfig:
    """Read a config, and check that its model and data fit each other.

    Raises:
      UserError: unknown, missing or mistyped fields, or sizes that do not fit.
    """
    run = from_config_dict(EmuRunConfig, config)
    queries, requested = run.model.causal_former.num_image_tokens, run.data.num_image_tokens
    if queries != requested:
        raise UserError(
            f"data.num_image_tokens is {requested}, but model.causal_former.num_image_tokens is {queries}: set both to "
            "the same number."
        )
    if run.model.vision.image_size != run.data.batch.image_size:
        raise UserError(
            f"data.batch.image_size is {run.data.batch.image_size}, but model.vision.image_size is "
            f"{run.model.vision.image_size}: set both to the same number."
        )
    if run.data.batch.length > run.model.decoder.max_length:
        raise UserError(
            f"data.batch.length is {run.data.batch.length}, more than model.decoder.max_length, which is "
            f"{run.model.decoder.max_length}."
        )
    if run.stage == DPO:
        run = dataclasses.replace(run, data=dataclasses.replace(run.data, answers=Answers.BOTH))
    return run


def with_vocabulary(run: EmuRunConfig, *, vocab_size: int) -> EmuRunConfig:
    """Return `run` with the vocabulary size of the tokenizer in its model.

    Raises:
      UserError: the model has another vocabulary size.
    """
    decoder = run.model.decoder
    if decoder.vocab_size not in (0, vocab_size):
        raise UserError(
            f"model.decoder.vocab_size is {decoder.vocab_size}, but {run.tokenizer} has {vocab_size} tokens; set it to "
            "0 to use the tokenizer's."
        )
    model = dataclasses.replace(run.model, decoder=dataclasses.replace(decoder, vocab_size=vocab_size))
    return dataclasses.replace(run, model=model)


def without_decay(run: EmuRunConfig) -> TrainConfig:
    """Return the settings of the loop without weight decay on tables of which only the new tokens are trained."""
    if not run.pretrain.new_tokens:
        return run.train
    optimizer = run.train.optimizer
    exempt = (*optimizer.no_decay, *NEW_TOKEN_TABLES)
    return dataclasses.replace(run.train, optimizer=dataclasses.replace(optimizer, no_decay=exempt))


def for_chip(run: EmuRunConfig, *, device_kind: str) -> EmuRunConfig:
    """Return `run` with the settings in `chips` for devices of this kind."""
    chip = next((chip for chip in run.chips if chip.name == generation(device_kind)), None)
    if chip is None:
        return run
    parts = {name: getattr(run.model, name) for name in ("vision", "causal_former", "decoder")}
    parts = {name: dataclasses.replace(part, saved_activations=getattr(chip, name)) for name, part in parts.items()}
    options = chip.compiler_options + run.train.compiler_options
    train = dataclasses.replace(run.train, compiler_options=options)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **parts), train=train)


def make_stage(
    run: EmuRunConfig, *, image_token_id: int, token_sources: Mapping[int, tuple[int, ...]] | None = None
) -> PretrainStage:
    """Return the stage that `run.stage` names; the vocabulary size of `run` must be set.

    Raises:
      UserError: unknown stage, or a config that this stage cannot use.
    """
    if run.stage not in EMU_STAGES:
        raise UserError(f"stage must be one of {', '.join(EMU_STAGES)}, not {run.stage!r}.")
    if run.stage in (INSTRUCT, DPO) and not run.instruct:
        raise UserError(f"The stage {run.stage} requires [USER] and [ASSISTANT]: set config.instruct=true.")
    config = run.pretrain
    if run.stage == CAPTION_WARMUP:
        config = dataclasses.replace(config, regression_weight=0.0)
    options: dict[str, Any] = {
        "model": run.model,
        "batch": run.data.batch,
        "image_token_id": image_token_id,
        "sources": tuple(one.name or one.path for one in run.data.sets),
        "config": config,
        "name": run.stage,
        "token_sources": token_sources or {},
    }
    if run.stage != DPO:
        return PretrainStage(**options)
    _check_reference(run)
    return DpoStage(**options, dpo=run.dpo)


def _check_reference(run: EmuRunConfig) -> None:
    """Raise UserError unless only adapters train, so that the model without them is the reference."""
    trains = matcher(run.pretrain.trainable)
    paths = flatten(unbox(boxed_shapes(run.model)))
    other = [path for path in paths if trains(path) and "/lora_" not in path]
    if run.model.lora is None or run.pretrain.new_tokens or other:
        found = other[0] if other else "new_tokens" if run.pretrain.new_tokens else "no adapter"
        raise UserError(
            f"The stage dpo trains LoRA adapters only, but the config trains {found}: set model.lora, "
            "pretrain.trainable=('lora',) and pretrain.new_tokens=0."
        )
    start = run.train.warm_start and params_directory(Path(run.train.warm_start))
    config = find_config(start) if start else None
    if config is not None and read_config(Path(config)).lora is not None:
        raise UserError(
            f"{run.train.warm_start} has adapters, and the reference of dpo is the model without adapters. Merge them "
            "with export-torch --merge-lora, and import the result with import-torch."
        )


def _held_out_data(run: EmuRunConfig, tokenizer: Tokenizer, one: HeldOutSet) -> Loader:
    """Return the batches of a held-out set in a fixed order, with the options of the training set of the same name."""
    same = next((s for s in run.data.sets if (s.name or Path(s.path).name) == one.name), SetConfig(one.path))
    sets = (dataclasses.replace(same, path=one.path, name=one.name, split=one.split, weight=1.0, epochs=None),)
    data = dataclasses.replace(
        run.data, sets=sets, frame_choice=Frames.UNIFORM, workers=0, prefetch=0, shuffle=False, rejects=""
    )
    index, count = jax.process_index(), jax.process_count()
    return make_loader(data, tokenizer=tokenizer, seed=0, process_index=index, process_count=count)


def emu_data(run: EmuRunConfig, *, tokenizer: Tokenizer) -> DataFactory:
    """Return a factory of the loader, which can resume with another number of processes or workers."""

    def load(**keywords: Any) -> Loader:
        return make_loader(
            run.data,
            tokenizer=tokenizer,
            seed=run.train.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            **keywords,
        )

    def make(states: list[Any]) -> Loader:
        if not states:
            return load()
        if len(states) == jax.process_count() and states[0]["workers"] == run.data.workers:
            loader = load()
            loader.set_state(states[jax.process_index()])
            return loader
        return load(plans=plans_from_states(states))

    return make
