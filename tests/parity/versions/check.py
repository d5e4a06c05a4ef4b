"""Open exports with the installed transformers and diffusers, and print one JSON object: what differs, by check.

python check.py EXPORTS REFERENCE, where EXPORTS has the folders that test_versions.py writes, and REFERENCE is
../shared/reference. It imports nothing of emu_jax, because it runs with versions that emu_jax does not install.
"""

import importlib.metadata
import json
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import torch

TOLERANCE = 1e-4  # of the largest value
IMAGES_OF_PROMPT = ([0], [1, 2])
BEAMS = {"num_beams": 5}
CASES = {
    "greedy": {},
    "beam5": BEAMS,
    "beam5_len1": BEAMS | {"length_penalty": 1.0},
    "beam5_rep": BEAMS | {"repetition_penalty": 1.5, "no_repeat_ngram_size": 3},
}


def main(exports: Path, reference: Path) -> None:
    """Run the checks."""
    torch.set_grad_enabled(False)
    found = {"versions": {name: importlib.metadata.version(name) for name in ("transformers", "diffusers")}}
    for check in CHECKS:
        try:
            found[check.__name__] = check(exports, reference)
        except Exception as error:  # a version may fail in any way
            place = traceback.extract_tb(error.__traceback__)[-1]
            found[check.__name__] = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    print(json.dumps(found))


def tokenizer(exports: Path, reference: Path) -> str:
    """Compare the ids of the reference's texts, and their number of inputs."""
    from transformers import AutoTokenizer

    cases = json.loads((reference / "tokenization.json").read_text())
    for folder in ("transformers", "huggingface"):
        theirs = AutoTokenizer.from_pretrained(exports / folder, trust_remote_code=True)
        if list(theirs("a")) != ["input_ids", "attention_mask"]:
            return f"{folder}: inputs {list(theirs('a'))}"
        different = [case["text"] for case in cases if theirs.encode(case["text"]) != case["ids"]]
        if different:
            return f"{folder}: {len(different)} of {len(cases)} texts differ, such as {different[0]!r}"
    return ""


def transformers_format(exports: Path, reference: Path) -> str:
    """Compare states, logits, embeddings and generated ids with those of the release, for Emu and Emu-I."""
    differences = []
    for folder, case in (("transformers_pretrained", "emu_tiny"), ("transformers", "emu_tiny_instruct")):
        model, expected = open_model(exports, folder), np.load(reference / case / "expected.npz")
        actual = forward_passes(model, expected)
        if "t2i_embeddings" in expected:
            actual["t2i_embeddings"] = embeddings_of_text(model, exports / folder)
        for name, value in actual.items():
            error = np.abs(value.numpy() - expected[name]).max() / np.abs(expected[name]).max()
            if not error < TOLERANCE:
                differences.append(f"{case}: {name} by {error:.1e}")
        differences += [f"{case}: {name}" for name in other_ids(model, expected)]
    return ", ".join(differences)


def forward_passes(model, expected):
    """Return features, embeddings, states and logits by the names of the reference."""
    images = torch.from_numpy(expected["images"])
    values = {"vision_features": model.visual(images), "visual_embeddings": model.encode_images(images)}
    for number, chosen in enumerate(IMAGES_OF_PROMPT):
        output = model(torch.from_numpy(expected[f"prompt{number}_ids"]), pixel_values=images[chosen])
        values[f"prompt{number}_hidden"] = output.last_hidden_state
        values[f"prompt{number}_regressed"] = output.visual_predictions
        values[f"prompt{number}_logits_last4"] = output.logits[:, -4:]
    return values


def embeddings_of_text(model, folder: Path):
    """Return the visual embeddings of the reference's text and of the empty text."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    return model.generate_embeddings(**processor(["An image of a dog wearing a pair of glasses.", ""], open_image=True))


def other_ids(model, expected) -> list[str]:
    """Return the names of the cases whose generated ids are not the release's."""
    names = []
    for number, chosen in enumerate(IMAGES_OF_PROMPT):
        ids, pixels = torch.from_numpy(expected[f"prompt{number}_ids"]), torch.from_numpy(expected["images"][chosen])
        for case, options in CASES.items():
            new = model.generate(ids, pixel_values=pixels, max_new_tokens=12, **options)[0, ids.shape[1] :]
            if new.tolist() != expected[f"gen_{case}_prompt{number}"][0, 1:].tolist():
                names.append(f"gen_{case}_prompt{number}")
    return names


def device_map(exports: Path, reference: Path) -> str:
    """Load with device_map="auto" (accelerate) and compare with the model without it."""
    ids = torch.tensor([[1, 319, 15373, 310]])
    plain, mapped = (open_model(exports, **options).generate(ids, max_new_tokens=4) for options in MAPS)
    return "" if torch.equal(plain, mapped) else "other ids"


MAPS = ({}, {"device_map": "auto"})


def save_pretrained(exports: Path, reference: Path) -> str:
    """Save and load again: the same bits."""
    model = open_model(exports)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = open_model(Path(folder), name="")
    before, after = model.state_dict(), again.state_dict()
    same = before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    return "" if same else "other parameters"


def huggingface_format(exports: Path, reference: Path) -> str:
    """Load the LLaMA folder, and generate with the tokenizer's own inputs."""
    return compare_llama(exports, "huggingface")


def inv_freq(exports: Path, reference: Path) -> str:
    """Do the same with a folder that has the rotary frequencies. No version may report a missing tensor."""
    return compare_llama(exports, "huggingface_inv_freq")


def compare_llama(exports: Path, name: str) -> str:
    """Compare the logits of a LLaMA folder with those of the format transformers."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    llama, info = LlamaForCausalLM.from_pretrained(exports / name, output_loading_info=True)
    inputs = AutoTokenizer.from_pretrained(exports / name)("a photo of", return_tensors="pt")
    new = llama.eval().generate(**inputs, max_new_tokens=2, do_sample=False)
    missing = [key for key in info["missing_keys"] if name != "huggingface" or not key.endswith("rotary_emb.inv_freq")]
    if missing or not new.shape[1] > inputs["input_ids"].shape[1]:
        return f"missing {missing}, {new.shape[1]} ids"
    expected = open_model(exports)(inputs["input_ids"]).logits
    error = (llama(**inputs).logits - expected).abs().max() / expected.abs().max()
    return "" if error < TOLERANCE else f"logits by {error:.1e}"


def visual_decoder(exports: Path, reference: Path) -> str:
    """Load U-Net and VAE with diffusers, and compare their parameters with the reference."""
    return compare_decoder(exports / "decoder", reference / "visual_decoder_tiny")


def legacy_attention(exports: Path, reference: Path) -> str:
    """Do the same with the names of the VAE's attention in old versions of diffusers."""
    return compare_decoder(exports / "decoder_legacy", reference / "visual_decoder_tiny")


def compare_decoder(folder: Path, original: Path) -> str:
    """Compare the parameters of U-Net and VAE with those of the reference."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    differences = []
    for name, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        ours, theirs = (cls.from_pretrained(source / name).state_dict() for source in (folder, original))
        if ours.keys() != theirs.keys() or any(not torch.equal(ours[key], theirs[key]) for key in ours):
            differences.append(name)
    return ", ".join(differences)


CHECKS = (
    tokenizer,
    transformers_format,
    device_map,
    save_pretrained,
    huggingface_format,
    inv_freq,
    visual_decoder,
    legacy_attention,
)


def open_model(exports: Path, name: str = "transformers", **options):
    """Load the model of the format transformers."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(exports / name, trust_remote_code=True, **options).eval()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
