"""`scaling` as a user types it, without training."""

import csv
import json
import re

import pytest

from emu_jax.cli import scaling
from emu_jax.errors import UserError
from tests.scaling.surfaces import SURFACES, isoflop_grid


@pytest.fixture
def points_file(tmp_path):
    path = tmp_path / "points.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["experiment", "params", "tokens", "loss", "budget", "other"])
        for name in ("chinchilla", "soda"):
            points = isoflop_grid(SURFACES[name])
            for row in zip(points.params, points.tokens, points.loss, points.budget, points.loss / 2, strict=True):
                rows.writerow([name, *map(float, row)])
    return path


def test_fit_of_a_table_has_the_four_approaches(points_file, tmp_path, capsys):
    only = tmp_path / "one.csv"
    only.write_text("".join(line for line in points_file.open() if not line.startswith("soda")))
    scaling.main(["fit", f"--points={only}", f"--json={tmp_path / 'law.json'}", "--bootstraps=5"])
    found = json.loads((tmp_path / "law.json").read_text())
    law = SURFACES["chinchilla"]
    for name in ("vpnls", "approach3"):
        for field in ("E", "A", "alpha", "B", "beta"):
            assert found[name][field] == pytest.approx(getattr(law, field), rel=1e-6)
    assert found["approach1"]["a"] == pytest.approx(law.a, abs=0.01)
    assert found["approach2"]["a"] == pytest.approx(law.a, abs=0.01)
    assert "vpnls" in capsys.readouterr().out


def test_fit_of_groups_and_of_several_losses(points_file, tmp_path):
    scaling.main(
        ["fit", f"--points={points_file}", "--group=experiment", f"--json={tmp_path / 'g.json'}", "--bootstraps=0"]
    )
    groups = json.loads((tmp_path / "g.json").read_text())["groups"]
    assert groups["soda"]["vpnls"]["beta"] == pytest.approx(0.439, rel=1e-6)
    scaling.main(
        ["fit", f"--points={points_file}", "--loss=loss,other", f"--json={tmp_path / 'l.json'}", "--bootstraps=0"]
    )
    assert set(json.loads((tmp_path / "l.json").read_text())) == {"losses", "joint", "notes"}


def test_a_pinned_floor(points_file, tmp_path):
    scaling.main(
        ["fit", f"--points={points_file}", "--group=experiment", "--pin-e=1.5", f"--json={tmp_path / 'p.json'}",
         "--bootstraps=3"]
    )  # fmt: skip
    for fits in json.loads((tmp_path / "p.json").read_text())["groups"].values():
        assert fits["vpnls"]["E"] == fits["pinned_E"] == 1.5
        assert fits["approach3"]["E"] == pytest.approx(1.5)


def test_the_page_is_one_file_with_every_figure(points_file, tmp_path):
    scaling.main(["plot", f"--points={points_file}", f"--output={tmp_path / 'page.html'}", "--bootstraps=5",
                  "--group=experiment"])  # fmt: skip
    text = (tmp_path / "page.html").read_text()
    assert text.count("<svg") == 16
    assert not re.search(r'(src|href)="https?:', text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("action", scaling.ACTIONS)
def test_every_action_has_help_with_examples(action, capsys):
    with pytest.raises(SystemExit):
        scaling.main([action, "--help"])
    text = capsys.readouterr().out
    assert f"python -m emu_jax scaling {action} --" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitt"], "did you mean fit"),
        (["fit"], "either --study=DIR or --points=FILE"),
        (["fit", "--points=none.csv"], "no file none.csv"),
        (["fit", "--points=none.csv", "--budget=x"], "--budget takes numbers"),
        (["fit", "--points=none.csv", "--level=2"], "level"),
        (["plot", "--points=none.csv"], "--output is missing"),
        (["run", "--study=nowhere"], "holds no plan.json"),
        (["collect", "--study=nowhere"], "holds no plan.json"),
        (["plan", "--preset=cpu"], "--study"),
        (["plan", "--preset=cpu", "--study=x", "--config.nothing=1"], "is not a field"),
    ],
)
def test_wrong_invocations_are_one_clear_line(words, message):
    with pytest.raises(UserError, match=message):
        scaling.main(words)
