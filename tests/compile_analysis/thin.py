"""The 14B train step with full widths and few layers, compiled for four chips. Run this file to write the golden file.

The golden file holds the memory per chip and the collectives, for each version of the compiler. It differs after a
change that gathers activations, splits a gather or saves more activations.
"""

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATH = Path(__file__).with_name("thin_14b.json")
ARGUMENTS = (
    "--config=configs/pretrain_14b.py",
    "--config.model.vision.num_layers=2",
    "--config.model.causal_former.num_layers=2",
    "--config.model.decoder.num_layers=2",
    "--config.model.decoder.vocab_size=8192",
    "--config.data.batch.batch_size=4",
    "--config.data.batch.length=256",
    "--config.data.batch.max_images=1",
    "--topology=v5p:2x2x1",
    "--mesh=data:1,fsdp:4,tensor:1",
)

MEMORY_PARTS = ("arguments", "outputs", "temporaries", "code")


def compiler_version() -> str:
    """Return the versions that determine the compiled program."""
    return f"jax {metadata.version('jax')}, libtpu {metadata.version('libtpu')}"


def run_compile(environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the JSON report of the command."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "thin.json"
        line = [sys.executable, "-m", "emu_jax", "compile", *ARGUMENTS, f"--json={path}"]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(path.read_text())


def golden_part(report: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a report that the golden file holds."""
    uses = [
        {
            "kind": u["kind"],
            "in_loop": u["in_loop"],
            "overlapped": u["overlapped"],
            "runs": u["count"],
            "MB": u["bytes"] / 1e6,
        }
        for u in report["collectives"]
    ]
    return {
        "memory_mib": {name: round(report["memory"][name] / 2**20, 1) for name in MEMORY_PARTS},
        "collectives": sorted(uses, key=lambda use: json.dumps(use, sort_keys=True)),
    }


def golden() -> dict[str, Any]:
    """Return the golden file: version of the compiler -> part of the report."""
    return json.loads(PATH.read_text()) if PATH.exists() else {}


def main() -> None:
    PATH.write_text(
        json.dumps(golden() | {compiler_version(): golden_part(run_compile())}, indent=1, sort_keys=True) + "\n"
    )
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
