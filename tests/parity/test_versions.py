"""Exports opened by older and newer versions of transformers and diffusers, each in its own environment.

`pytest tests/parity/test_versions.py -m slow` makes the environments, in which torch and what else is missing come from
the environment of this test. With `-s` it prints the rows of the table in docs/how-to/pytorch.md.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from emu_jax.convert.export_torch import Layout, export_decoder, prepare_export
from emu_jax.convert.import_torch import prepare_import

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

CHECK = Path(__file__).parent / "versions" / "check.py"
VERSIONS = {  # transformers: diffusers of the same months
    "4.31.0": "0.20.1",
    "4.33.3": "0.21.4",
    "4.36.2": "0.25.1",
    "4.41.2": "0.29.2",
    "4.46.3": "0.31.0",
    "4.57.6": "0.36.0",
    "5.23.0": "0.42.1",
}
COLUMNS = {
    "tokenizer": "tokenizer",
    "transformers_format": "`transformers` format",
    "device_map": '`device_map="auto"`',
    "save_pretrained": "`save_pretrained`",
    "huggingface_format": "`huggingface` format",
    "visual_decoder": "visual decoder",
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory, shared_dir):
    folder = tmp_path_factory.mktemp("exports")
    tokenizer = shared_dir / "samples" / "llama_tokenizer.model"
    prepare_import([shared_dir / "reference" / "emu_tiny_instruct"], tokenizer=tokenizer).write(folder / "model")
    prepared = prepare_export(folder / "model", merge_lora=True)
    for layout in (Layout.TRANSFORMERS, Layout.HUGGINGFACE):
        prepared.write(folder / layout.value, layout=layout)
    export_decoder(shared_dir / "reference" / "visual_decoder_tiny", folder / "decoder")
    return folder


@pytest.mark.parametrize("version", VERSIONS)
def test_version(exports, shared_dir, tmp_path, version):
    found = check(version, exports, shared_dir / "reference", tmp_path)
    assert set(found) == set(COLUMNS)
    cells = ["no" if found[name] else "yes" for name in COLUMNS]
    print(f"| transformers | diffusers | {' | '.join(COLUMNS.values())} |")
    print(f"| {version} | {VERSIONS[version]} | {' | '.join(cells)} |")
    assert not any(found.values()), json.dumps(found, indent=1)


def check(version, exports, reference, tmp_path):
    """Return the differences by check."""
    environment = tmp_path / version
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    wanted = [f"transformers=={version}", f"diffusers=={VERSIONS[version]}", "sentencepiece", "protobuf", "pillow"]
    if VERSIONS[version] < "0.31":
        wanted.append("huggingface_hub<0.26")  # diffusers of that time imports what 0.26 removed
    install = [python, "-m", "pip", "install", "-q", "--only-binary", ":all:"]
    subprocess.run([*install, *wanted], check=True)
    subprocess.run([*install, "--no-deps", "accelerate"], check=True)
    site = sysconfig.get_path("purelib", vars={"base": str(environment)})
    (Path(site) / "parity.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [python, CHECK, exports, reference]
    variables = os.environ | {"HF_MODULES_CACHE": str(environment / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
