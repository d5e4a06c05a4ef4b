"""Exports opened by older and newer versions of transformers and diffusers, each installed in its own folder.

`pytest tests/parity/test_versions.py -m slow` installs them. torch, and everything else that a folder lacks, comes from
the environment of this test. With `-s` it prints the rows of the table in docs/how-to/pytorch.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emu_jax.convert.diffusion_folder import DecoderFiles
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
    "inv_freq": "`--inv-freq`",
    "visual_decoder": "visual decoder",
    "legacy_attention": "`--legacy-attention`",
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory, shared_dir):
    folder = tmp_path_factory.mktemp("exports")
    tokenizer, reference = shared_dir / "samples" / "llama_tokenizer.model", shared_dir / "reference"
    for name in ("emu_tiny", "emu_tiny_instruct"):
        prepare_import([reference / name], tokenizer=tokenizer).write(folder / name)
    prepare_export(folder / "emu_tiny").write(folder / "transformers_pretrained", layout=Layout.TRANSFORMERS)
    for name, layout, inv_freq in (
        ("transformers", Layout.TRANSFORMERS, False),
        ("huggingface", Layout.HUGGINGFACE, False),
        ("huggingface_inv_freq", Layout.HUGGINGFACE, True),
    ):
        prepared = prepare_export(folder / "emu_tiny_instruct", merge_lora=True, inv_freq=inv_freq)
        prepared.write(folder / name, layout=layout)
    decoder = reference / "visual_decoder_tiny"
    export_decoder(decoder, folder / "decoder")
    export_decoder(decoder, folder / "decoder_legacy", DecoderFiles(legacy_attention=True))
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
    packages = tmp_path / "packages"
    wanted = [f"transformers=={version}", f"diffusers=={VERSIONS[version]}", "sentencepiece", "protobuf", "pillow"]
    if VERSIONS[version] < "0.31":
        wanted.append("huggingface_hub<0.26")  # diffusers of that time imports what 0.26 removed
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", packages, "--only-binary", ":all:"]
    subprocess.run([*pip, *wanted], check=True)
    variables = os.environ | {
        "PYTHONPATH": str(packages),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "USE_FLAX": "0",  # diffusers 0.20 fails with the jax of today
    }
    command = [sys.executable, CHECK, exports, reference]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    result = json.loads(last)
    assert result.pop("versions") == {"transformers": version, "diffusers": VERSIONS[version]}
    return result
