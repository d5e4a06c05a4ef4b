"""The decoder on the device: every program compiled ahead of time, run by name, on all processes of a pod alike."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from emu_jax.generation.sampling import Search, TextOptions
from emu_jax.models.emu import Emu
from emu_jax.serving.beams import begin_beams, empty_lane, step_beams
from emu_jax.serving.config import EngineConfig
from emu_jax.serving.programs import Chunk, Ids, Start, begin, decode, encode, prefill, read_embeddings
from emu_jax.serving.state import INT, TextState, empty_text_state, prompt_images, scalar_controls, text_row
from emu_jax.serving.weights import Weights
from emu_jax.sharding.axes import ACT_HEADS
from emu_jax.sharding.specs import activation_spec

_STOP, _REST, _RESET = "stop", "rest", "reset"  # commands to other processes besides programs


@flax.struct.dataclass
class DeviceState:
    """Arrays that stay on the device. `lane` is None where beam search is off."""

    text: TextState
    lane: Any  # BeamLane | None


@dataclasses.dataclass(frozen=True)
class Program:
    """`function(weights, state, *arguments)` gives the new state and a result; the examples fix the shapes."""

    function: Callable[..., tuple[DeviceState, Any]]
    examples: tuple[Any, ...]


class TextDevice:
    """The programs, the state, and the parameter sets by model name.

    On several processes process 0 calls `run`; each call is repeated by `follow` on the others.

    Attributes:
      weights: one parameter set for each model name, all of the same shapes.
    """

    def __init__(
        self, model: Emu, weights: Mapping[str, Weights], engine: EngineConfig, ids: Ids, *, mesh: Mesh | None = None
    ) -> None:
        self.model, self.weights, self.engine, self.ids = model, dict(weights), engine, ids
        self._mesh, self._names = mesh, list(weights)
        self._programs = _programs(model, engine, ids)
        self._commands = [*self._programs, _STOP, _REST, _RESET]
        self._compiled: dict[str, Any] = {}
        self._state = self._empty_state()

    @property
    def program_names(self) -> list[str]:
        return list(self._programs)

    def compile(self, name: str) -> None:
        """Compile one program for its only shapes."""
        program = self._programs[name]
        layout: Any = None  # of the outputs: the state stays where it is, results are replicated
        if self._mesh is not None:
            replicated = NamedSharding(self._mesh, PartitionSpec())
            layout = (jax.tree.map(lambda leaf: leaf.sharding, self._state), replicated)
        with self._on_mesh():
            jitted = jax.jit(program.function, donate_argnums=1, out_shardings=layout)
            self._compiled[name] = jitted.lower(self._any_weights, self._state, *program.examples).compile()

    def run(self, name: str, model: str, *arguments: Any) -> Any:
        """Run a compiled program on the state with the parameters of `model`; return its result as NumPy arrays."""
        self._send(name, model)
        if jax.process_count() > 1 and arguments:
            arguments = multihost_utils.broadcast_one_to_all(arguments)
        return self._execute(name, model, arguments)

    def run_example(self, name: str) -> None:
        """Run a program on arguments that change no answer, before there are any."""
        self.run(name, self._names[0], *self._programs[name].examples)

    def blank_images(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the arguments of `encode`, all of them padding: pixels, slots, indices."""
        pixels, slots, indices = (array.copy() for array in self._programs["encode"].examples)
        return pixels, slots, indices

    def reset(self) -> None:
        """Begin with an empty state, after a program that failed."""
        self._send(_RESET, self._names[0])
        self._state = self._empty_state()

    def rest(self) -> None:
        """Send the other processes a sign of life while there is no work."""
        self._send(_REST, self._names[0])

    def stop(self) -> None:
        """End `follow` on the other processes."""
        self._send(_STOP, self._names[0])

    def follow(self) -> None:
        """Repeat what process 0 does until it stops."""
        while True:
            command, model = np.asarray(multihost_utils.broadcast_one_to_all(np.zeros(2, np.int32)))
            name = self._commands[int(command)]
            if name == _STOP:
                return
            if name == _RESET:
                self._state = self._empty_state()
            elif name != _REST:
                arguments = self._programs[name].examples
                if arguments:
                    arguments = multihost_utils.broadcast_one_to_all(arguments)
                self._execute(name, self._names[int(model)], arguments)

    @property
    def _any_weights(self) -> Weights:
        return next(iter(self.weights.values()))

    def _send(self, name: str, model: str) -> None:
        if jax.process_count() > 1:
            word = np.array([self._commands.index(name), self._names.index(model)], np.int32)
            multihost_utils.broadcast_one_to_all(word)

    def _execute(self, name: str, model: str, arguments: tuple[Any, ...]) -> Any:
        arguments = jax.tree.map(np.asarray, arguments)
        self._state, result = self._compiled[name](self.weights[model], self._state, *arguments)
        jax.block_until_ready(self._state.text.done)
        return jax.tree.map(np.asarray, result)

    def _empty_state(self) -> DeviceState:
        search = _search(self.engine, self.ids)

        def create() -> DeviceState:
            text = empty_text_state(self.model.config, self.engine, bos_id=self.ids.bos_id)
            lane = empty_lane(self.model.config, self.engine, search) if self.engine.max_beams > 1 else None
            return DeviceState(text=text, lane=lane)

        if self._mesh is None:
            return jax.tree.map(jnp.array, create())  # a separate buffer for each leaf: all are donated
        with self._on_mesh():
            return jax.jit(create, out_shardings=_state_shardings(jax.eval_shape(create), self._mesh))()

    def _on_mesh(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)


def _state_shardings(shapes: DeviceState, mesh: Mesh) -> Any:
    """Caches are sharded by heads, everything else is replicated."""

    def sharding(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        if leaf.ndim != 4:  # [B, K, T, H] is a cache
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, activation_spec((None, ACT_HEADS, None, None), leaf.shape))

    return jax.tree.map(sharding, shapes)


def _search(engine: EngineConfig, ids: Ids) -> Search:
    """Return the options that all programs are compiled for; a repetition penalty of 1 changes nothing."""
    return Search(
        capacity=engine.context,
        num_beams=engine.max_beams,
        early_stopping=False,
        sample=False,
        filtered=False,
        penalized=True,
        no_repeat_ngram_size=0,
        bos_id=ids.bos_id,
        eos_id=ids.eos_id,
        pad_id=ids.pad_id,
    )


def _programs(model: Emu, engine: EngineConfig, ids: Ids) -> dict[str, Program]:
    """Return all programs by name, with arguments that do nothing."""
    search, size = _search(engine, ids), model.config.vision.image_size
    images = min(engine.vision_batch, engine.slots * prompt_images(model.config, engine.context))
    integer = INT(0)
    start = Start(
        slot=integer, token=integer, position=integer, phase=integer, row=text_row(scalar_controls(TextOptions()))
    )

    def on_text(function: Callable[..., TextState], **fixed: Any) -> Callable[..., tuple[DeviceState, Any]]:
        return lambda weights, state, *arguments: (
            dataclasses.replace(state, text=function(weights, state.text, *arguments, model=model, **fixed)),
            (),
        )

    def decode_program(weights: Weights, state: DeviceState, active: jax.Array) -> tuple[DeviceState, Any]:
        text, decoded = decode(
            weights, state.text, active, model=model, ids=ids, search=search, steps=engine.decode_steps
        )
        return dataclasses.replace(state, text=text), decoded

    def read_program(weights: Weights, state: DeviceState, slot: jax.Array) -> tuple[DeviceState, Any]:
        return state, read_embeddings(weights, state.text, slot)[1]

    def begin_beams_program(weights: Weights, state: DeviceState, *arguments: Any) -> tuple[DeviceState, Any]:
        lane = begin_beams(weights, state.text, state.lane, *arguments, model=model, search=search)
        return dataclasses.replace(state, lane=lane), ()

    def step_beams_program(weights: Weights, state: DeviceState) -> tuple[DeviceState, Any]:
        lane, answer = step_beams(weights, state.lane, model=model, search=search, steps=engine.decode_steps)
        return dataclasses.replace(state, lane=lane), answer

    pixels = np.zeros((images, size, size, 3), np.float32)
    past = np.full(images, engine.slots, np.int32)
    programs = {"encode": Program(on_text(encode), (pixels, past, np.zeros(images, np.int32)))}
    for length in engine.chunk_sizes:
        blank: Any = np.zeros(length, np.int32)
        chunk = Chunk(slot=integer, start=integer, tokens=blank, image_rows=blank - 1)
        programs[prefill_name(length)] = Program(on_text(prefill), (chunk,))
    programs |= {
        "begin": Program(on_text(functools.partial(begin, ids=ids)), (start,)),
        "decode": Program(decode_program, (np.zeros(engine.slots, bool),)),
        "embeddings": Program(read_program, (integer,)),
    }
    if engine.max_beams > 1:
        programs["begin_beams"] = Program(begin_beams_program, (start, INT(1)))
        programs["step_beams"] = Program(step_beams_program, ())
    return programs


def prefill_name(length: int) -> str:
    """Return the name of the prefill program for chunks of that many tokens."""
    return f"prefill_{length}"
