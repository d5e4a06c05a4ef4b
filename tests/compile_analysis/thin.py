"""The 14B train step with full widths and few layers, compiled for four chips; run it to write the golden file.

The file holds what each compiler makes of it: the memory of a chip and every kind of collective. A change that gathers
activations, splits a gather or keeps more than it did shows as a difference.
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
WORDS = (
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


def version() -> str:
    """Of what decides over the file."""
    return f"jax {metadata.version('jax')}, libtpu {metadata.version('libtpu')}"


def compiled(environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What the command says of the thin step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "thin.json"
        line = [sys.executable, "-m", "emu_jax", "compile", *WORDS, f"--json={path}"]
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(path.read_text())


def held(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report that is kept."""
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
        "memory_mib": {name: round(size / 2**20, 1) for name, size in report["memory"].items()},
        "collectives": sorted(uses, key=lambda use: json.dumps(use, sort_keys=True)),
    }


def golden() -> dict[str, Any]:
    """Version of the compiler -> what it made."""
    return json.loads(PATH.read_text()) if PATH.exists() else {}


def main() -> None:
    PATH.write_text(json.dumps(golden() | {version(): held(compiled())}, indent=1, sort_keys=True) + "\n")
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
