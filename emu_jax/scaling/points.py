"""The table that laws are fitted to: parameters, tokens, loss and budget of each run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from emu_jax.errors import UserError
from emu_jax.typing import Float

COLUMNS = ("params", "tokens", "loss", "budget")
SAME_BUDGET = 0.1  # neighbors closer than this, in ln C, are one IsoFLOP curve: padding differs from run to run
HELD_OUT_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class Points:
    """Finished runs; four float64 arrays of one length.

    Attributes:
      params: N.
      tokens: D.
      loss: L, in nats per token for text.
      budget: C, training FLOPs.
    """

    params: Float[np.ndarray, "n"]
    tokens: Float[np.ndarray, "n"]
    loss: Float[np.ndarray, "n"]
    budget: Float[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.loss)

    def __getitem__(self, index: np.ndarray) -> Points:
        """Return the points that an index or a mask selects."""
        return Points(*(getattr(self, name)[index] for name in COLUMNS))

    def with_loss(self, loss: Float[np.ndarray, "n"]) -> Points:
        """Return the same runs with other losses."""
        return dataclasses.replace(self, loss=loss)

    @property
    def flops_per_param_token(self) -> float:
        """k in C = k N D, the median over the points; 6 for a plain decoder."""
        return float(np.median(self.budget / (self.params * self.tokens)))

    def curves(self) -> list[tuple[float, Points]]:
        """Return (budget, its points) for each IsoFLOP curve, smallest budget first."""
        order = np.argsort(self.budget, kind="stable")
        gaps = np.diff(np.log(self.budget[order])) > SAME_BUDGET
        groups = np.split(order, np.flatnonzero(gaps) + 1)
        return [(float(np.exp(np.log(self.budget[group]).mean())), self[group]) for group in groups]

    def split_largest(self) -> tuple[Points, Points]:
        """Return (all other points, the points of the largest budget)."""
        curves = self.curves()
        threshold = curves[-1][1].budget.min() * (1 - HELD_OUT_TOLERANCE)
        return self[self.budget < threshold], self[self.budget >= threshold]


def points_from_columns(columns: dict[str, list], *, loss: str, source: str) -> Points:
    """Return the points of a table; `loss` names the column of losses.

    Raises:
      UserError: a column is missing, not numeric or not positive, or there are too few rows.
    """
    names = ("params", "tokens", loss, "budget")
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(
            f"{source} has no column {', '.join(missing)}; its columns are {', '.join(columns)}, and a fit needs "
            "params, tokens, budget and a loss."
        )
    arrays = []
    for name in names:
        try:
            arrays.append(np.asarray(columns[name], np.float64))
        except (TypeError, ValueError):
            raise UserError(f"Column {name} of {source} must hold numbers only.") from None
    finite = np.isfinite(arrays[2])
    arrays = [array[finite] for array in arrays]
    for name, array in zip(names, arrays, strict=True):
        if not (np.isfinite(array) & (array > 0)).all():
            raise UserError(f"Column {name} of {source} must be positive in every row.")
    if len(arrays[0]) < 6:
        raise UserError(f"{source} has {len(arrays[0])} rows with a {loss}; a law of five numbers needs at least 6.")
    return Points(*arrays)


def read_table(path: Path) -> dict[str, list]:
    """Read a .csv or .parquet file as column name -> values.

    Raises:
      UserError: there is no such file, or it cannot be read.
    """
    try:
        table = pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read as a table ({str(error).splitlines()[0]}).") from None
    return table.to_pydict()
