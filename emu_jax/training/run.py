"""A run as its config file describes it, and the objects that the loop wants made from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from emu_jax.config import from_config_dict
from emu_jax.data.loader.pipeline import DataConfig, Loader, make_loader, plans_from_states
from emu_jax.data.tokenizer import Tokenizer
from emu_jax.errors import UserError
from emu_jax.hardware import generation
from emu_jax.models.config import EmuConfig
from emu_jax.training.chips import ChipConfig
from emu_jax.training.config import TrainConfig
from emu_jax.training.loop import DataFactory
from emu_jax.training.stage import Stage
from emu_jax.training.stages.pretrain import PretrainConfig, PretrainStage

PRETRAIN, CAPTION_WARMUP, INSTRUCT = EMU_STAGES = ("pretrain", "caption_warmup", "instruct")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All of a run.

    Attributes:
      model: sizes; a `decoder.vocab_size` of 0 is taken from the tokenizer.
      tokenizer: path of a SentencePiece model.
      instruct: the tokenizer has `[USER]` and `[ASSISTANT]`.
      data: sets, and the shape of a batch.
      stage: `pretrain` (both losses), `caption_warmup` (the text loss alone, before the embeddings mean something) or
        `instruct` (chats).
      pretrain: weights of the losses, and what trains.
      train: length, optimizer, mesh, checkpoints.
      chips: what is otherwise on some chips.
    """

    model: EmuConfig
    tokenizer: str
    data: DataConfig
    train: TrainConfig
    stage: str = PRETRAIN
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    instruct: bool = False
    chips: tuple[ChipConfig, ...] = ()


def read_run_config(config: Mapping[str, Any] | Any) -> RunConfig:
    """The run of a ConfigDict.

    Raises:
      UserError: unknown, missing or mistyped fields, or parts that do not fit together.
    """
    run = from_config_dict(RunConfig, config)
    queries, wanted = run.model.causal_former.num_image_tokens, run.data.num_image_tokens
    if queries != wanted:
        raise UserError(f"data.num_image_tokens is {wanted}, and the model makes {queries} embeddings an image.")
    if run.model.vision.image_size != run.data.batch.image_size:
        raise UserError(
            f"data.batch.image_size is {run.data.batch.image_size}, and the model reads {run.model.vision.image_size}."
        )
    if run.data.batch.length > run.model.decoder.max_length:
        raise UserError(
            f"data.batch.length is {run.data.batch.length}, more than the decoder's {run.model.decoder.max_length}."
        )
    return run


def with_vocabulary(run: RunConfig, *, vocab_size: int) -> RunConfig:
    """`run` with the tokenizer's vocabulary in the model.

    Raises:
      UserError: the model was given another one.
    """
    decoder = run.model.decoder
    if decoder.vocab_size not in (0, vocab_size):
        raise UserError(
            f"model.decoder.vocab_size is {decoder.vocab_size}, and {run.tokenizer} has {vocab_size}; "
            "give 0 to take the tokenizer's."
        )
    model = dataclasses.replace(run.model, decoder=dataclasses.replace(decoder, vocab_size=vocab_size))
    return dataclasses.replace(run, model=model)


def on_chip(run: RunConfig, *, device_kind: str) -> RunConfig:
    """`run` as it is on devices of that kind."""
    chip = next((chip for chip in run.chips if chip.name == generation(device_kind)), None)
    if chip is None:
        return run
    parts = {name: getattr(run.model, name) for name in ("vision", "causal_former", "decoder")}
    parts = {name: dataclasses.replace(part, saved_activations=getattr(chip, name)) for name, part in parts.items()}
    options = chip.compiler_options + run.train.compiler_options
    train = dataclasses.replace(run.train, compiler_options=options)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **parts), train=train)


def make_stage(run: RunConfig, *, image_token_id: int) -> Stage:
    """The stage that `run.stage` names; `run` has its vocabulary.

    Raises:
      UserError: another name, or a run that its stage cannot be.
    """
    if run.stage not in EMU_STAGES:
        raise UserError(f"stage must be one of {', '.join(EMU_STAGES)}, not {run.stage!r}.")
    if run.stage == INSTRUCT and not run.instruct:
        raise UserError("The stage instruct reads chats: set config.instruct=true, for [USER] and [ASSISTANT].")
    config = run.pretrain
    if run.stage == CAPTION_WARMUP:
        config = dataclasses.replace(config, regression_coefficient=0.0)
    return PretrainStage(
        model=run.model,
        batch=run.data.batch,
        image_token_id=image_token_id,
        sources=tuple(one.name or one.path for one in run.data.sets),
        config=config,
        name=run.stage,
    )


def data_factory(run: RunConfig, *, tokenizer: Tokenizer) -> DataFactory:
    """Makes the loader, at its beginning or where the data states of an earlier run left it."""

    def make(states: list[Any]) -> Loader:
        def load(**where: Any) -> Loader:
            return make_loader(
                run.data,
                tokenizer=tokenizer,
                seed=run.train.seed,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                **where,
            )

        same_readers = len(states) == jax.process_count() and states[0]["workers"] == run.data.workers
        if not states or same_readers:
            loader = load()
            if states:
                loader.set_state(states[jax.process_index()])
            return loader
        return load(plans=plans_from_states(states))

    return make
