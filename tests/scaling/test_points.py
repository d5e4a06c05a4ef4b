"""Tables of points: reading, grouping into IsoFLOP curves, clear errors."""

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from emu_jax.errors import UserError
from emu_jax.scaling.points import points_from_columns, read_table
from tests.scaling.surfaces import SURFACES, isoflop_grid


def columns(points):
    return {name: getattr(points, name).tolist() for name in ("params", "tokens", "loss", "budget")}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_comes_back_from_disk(tmp_path, suffix):
    points = isoflop_grid(SURFACES["chinchilla"])
    table = pyarrow.table(columns(points))
    path = tmp_path / f"points{suffix}"
    if suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    found = points_from_columns(read_table(path), loss="loss", source=str(path))
    np.testing.assert_allclose(found.loss, points.loss, rtol=1e-12)
    assert found.flops_per_param_token == pytest.approx(6.0)


def test_budgets_that_differ_by_rounding_are_one_curve():
    points = isoflop_grid(SURFACES["chinchilla"], budgets=(1e19, 3e19, 1e20))
    shaken = columns(points) | {"budget": (points.budget * np.linspace(0.999, 1.001, len(points))).tolist()}
    found = points_from_columns(shaken, loss="loss", source="table")
    assert [len(curve) for _, curve in found.curves()] == [10, 10, 10]
    rest, largest = found.split_largest()
    assert (len(rest), len(largest)) == (20, 10)
    assert largest.budget.min() > rest.budget.max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "no column tokens"),
        ({"loss": ["bad"] * 70}, "numbers only"),
        ({"params": [0.0] * 70}, "positive"),
        ({"budget": [float("nan")] * 70}, "positive"),
        ({"loss": [float("nan")] * 70}, "at least 6"),
    ],
)
def test_a_wrong_table_is_one_clear_line(change, message):
    table = columns(isoflop_grid(SURFACES["chinchilla"])) | change
    table = {name: values for name, values in table.items() if values is not None}
    with pytest.raises(UserError, match=message):
        points_from_columns(table, loss="loss", source="table.csv")


def test_a_run_without_a_loss_is_left_out():
    table = columns(isoflop_grid(SURFACES["chinchilla"]))
    table["loss"][3] = None
    assert len(points_from_columns(table, loss="loss", source="table.csv")) == 69


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "bad.parquet")
