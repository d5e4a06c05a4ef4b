"""Seconds of a step by the TPU compiler's own estimate, for the hours of a plan."""

from __future__ import annotations

import copy
from typing import Any

from emu_jax.compile_analysis.program import GenerationShape
from emu_jax.compile_analysis.programs import PROGRAMS
from emu_jax.compile_analysis.report import compile_report
from emu_jax.compile_analysis.topologies import Topology
from emu_jax.scaling.ladder import Sizes
from emu_jax.scaling.plan import SecondsPerStep


def compiled_seconds(config: Any, topology: Topology, *, vocab_size: int) -> SecondsPerStep:
    """Return a function that compiles the train step of a size for `topology` and estimates its seconds.

    Args:
      config: the ConfigDict that all runs share.
      topology: the slice, such as v5p:2x2x1.
      vocab_size: of the model.
    """

    def seconds(sizes: Sizes) -> float:
        sized = copy.deepcopy(config)
        sized.model.decoder.vocab_size = vocab_size
        for name, value in sizes.items():
            part, field = name.split(".")
            sized.model[part][field] = value
        return compile_report(PROGRAMS["train"](sized, GenerationShape()), topology).cost.seconds

    return seconds
