"""The format transformers, opened by `AutoModel` with its own code, computes and generates what emu_jax does."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from flax import traverse_util

from emu_jax.convert.export_torch import Layout, prepare_export
from emu_jax.convert.import_torch import prepare_import
from emu_jax.convert.load import load_model
from emu_jax.data.document import Role
from emu_jax.data.tokenizer import Tokenizer, train_tokenizer
from emu_jax.generation.chat import SYSTEM_IMAGE, Turn, chat_prompt
from emu_jax.generation.images import generate_embeddings
from emu_jax.generation.options import TextOptions
from emu_jax.generation.prompt import PromptBatch, build_prompt
from emu_jax.generation.sampling import compile_options
from emu_jax.generation.text import generate_tokens
from emu_jax.models.emu import Emu
from tests.convert.release import random_state, small_config, with_parts, write_release

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RELATIVE = 1e-5  # of the largest value
CAPACITY = 12
LINES = ["a red circle on a blue ground", "what is this? a small green square.", "This is the first image of a dog"]
CASES = {
    "greedy": [{}, {"min_length": 4}, {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}],
    "beams": [
        {"num_beams": 5},
        {"num_beams": 5, "length_penalty": 1.0, "min_length": 3},
        {"num_beams": 5, "length_penalty": -1.0},
        {"num_beams": 5, "repetition_penalty": 1.5, "no_repeat_ngram_size": 3},
    ],
}


class Case:
    """A small Emu-I with merged adapters: the parts of emu_jax, and the exported folder."""

    def __init__(self, folder):
        train_tokenizer(LINES * 4, folder / "pieces.model", vocab_size=300)
        self.tokenizer = Tokenizer.load(folder / "pieces.model", instruct=True)
        config = with_parts(
            small_config(lora=True), decoder={"vocab_size": self.tokenizer.vocab_size, "max_length": 512}
        )
        state = {name: 0.5 * array for name, array in random_state(config).items()}
        release = write_release(folder / "release", config, state)
        prepare_import([release], tokenizer=folder / "pieces.model").write(folder / "tuned")
        prepared = prepare_export(folder / "tuned", merge_lora=True)
        card = {
            "license": "mit",
            "base_model": "some/model",
            "training": {"train.steps": 3},
            "scores": {"coco": {"CIDEr": 1.5}},
        }
        self.folder = folder / "export"
        prepared.write(self.folder, layout=Layout.TRANSFORMERS, shard_bytes=20_000, card=card)
        prepare_import([self.folder]).write(folder / "back")
        self.back = folder / "back"
        parts = load_model(self.back)
        self.config, self.params = parts.config, parts.params
        self.model = Emu(parts.config, image_token_id=self.tokenizer.image_token_id)
        options = {"trust_remote_code": True}
        self.theirs = transformers.AutoModel.from_pretrained(self.folder, **options).eval()
        self.processor = transformers.AutoProcessor.from_pretrained(self.folder, **options)

    def prompt(self, parts, **options):
        sizes = {"num_image_tokens": self.config.causal_former.num_image_tokens, "image_size": 8}
        return build_prompt(parts, tokenizer=self.tokenizer, **sizes, **options)

    def batch(self, inputs):
        """Return the same inputs for emu_jax."""
        visual = slots = None
        if "pixel_values" in inputs:
            pixels = jnp.asarray(inputs["pixel_values"].numpy().transpose(0, 2, 3, 1))
            visual = self.model.apply({"params": self.params}, pixels, method=Emu.embed_images)
            first = (inputs["input_ids"] == self.tokenizer.boi_id).sum(1).cumsum(0).roll(1)
            first[0] = 0
            slots = jnp.minimum(jnp.asarray(first.numpy())[:, None] + jnp.arange(len(pixels)), len(pixels) - 1)
        tokens = jnp.asarray(inputs["input_ids"].numpy().astype(np.int32))
        return PromptBatch(
            tokens=tokens,
            is_token=jnp.asarray(inputs["attention_mask"].numpy().astype(bool)),
            visual_embeddings=visual,
            slots=slots,
        )

    def our_ids(self, inputs, options):
        chosen = TextOptions(max_new_tokens=CAPACITY, **options)
        tokenizer = self.tokenizer
        ids = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
        search, controls = compile_options(chosen, capacity=CAPACITY, max_new_tokens=CAPACITY, **ids)
        output = generate_tokens(self.params, self.batch(inputs), controls, model=self.model, search=search)
        return [row[1:n].tolist() for row, n in zip(np.asarray(output.tokens), output.lengths, strict=True)]

    def their_ids(self, inputs, options):
        options = dict(options)
        if "min_length" in options:
            options["min_new_tokens"] = options.pop("min_length") - 1  # our length includes <s>
        new = self.theirs.generate(**inputs, max_new_tokens=CAPACITY, **options)[:, inputs["input_ids"].shape[1] :]
        return [[token for token in row if token != self.tokenizer.pad_id] for row in new.tolist()]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("format"))


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, np.uint8) for size in ((30, 50, 3), (8, 8, 3), (41, 9, 3))]


def assert_close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


def test_logits_and_embeddings(case, photos):
    inputs = case.processor("a <image> of <image> dogs", images=photos[:2])
    with torch.no_grad():
        theirs = case.theirs(**inputs)
    pixels = jnp.asarray(inputs["pixel_values"].numpy().transpose(0, 2, 3, 1))[None]
    ours = case.model.apply({"params": case.params}, jnp.asarray(inputs["input_ids"].numpy().astype(np.int32)), pixels)
    assert_close(theirs.visual_embeddings, ours.visual_embeddings[0])
    assert_close(theirs.logits, np.asarray(ours.logits)[..., : case.tokenizer.vocab_size])
    assert_close(theirs.visual_predictions, np.asarray(ours.visual_predictions))


@pytest.mark.parametrize("kind", CASES)
def test_generated_ids_are_equal(case, photos, kind):
    inputs = case.processor(["<image>a dog", "what is this?", "first <image> of <image>"], images=photos)
    for options in CASES[kind]:
        ours = case.our_ids(inputs, options)
        assert case.their_ids(inputs, options) == ours[:3], options


def test_generated_embeddings_are_equal(case, photos):
    inputs = case.processor(["a red circle", "<image> a blue"], images=photos[:1], open_image=True)
    assert inputs["input_ids"][:, -1].tolist() == [case.tokenizer.boi_id] * 2
    theirs = case.theirs.generate_embeddings(**inputs)
    assert_close(theirs, np.asarray(generate_embeddings(case.params, case.batch(inputs), model=case.model)))


def test_prompts_and_pixels_are_equal(case, photos, tmp_path):
    transparent = PIL.Image.fromarray(np.dstack([photos[0], photos[0][..., 0]]))
    transparent.save(tmp_path / "a.png")
    PIL.Image.fromarray(photos[2].astype(np.uint16)[..., 0] * 200).save(tmp_path / "b.png")  # 16 bits
    images = [photos[0], tmp_path / "a.png", tmp_path / "b.png"]
    inputs = case.processor("  a <image> of<image><image>\n dogs ", images=images)
    prompt = case.prompt(["  a ", images[0], " of", images[1], images[2], "\n dogs "])
    assert inputs["input_ids"][0].tolist() == prompt.tokens.tolist()
    assert_close(inputs["pixel_values"].numpy().transpose(0, 2, 3, 1), np.stack(prompt.images))


def test_chat_prompts_are_equal(case, photos):
    image = {"type": "image", "image": photos[0]}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": " what is [IMG] this? "}]},
        {"role": "assistant", "content": "a dog</s>"},
        {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "text", "text": "red"}, image]},
    ]
    turns = [
        Turn(Role.USER, (photos[0], " what is [IMG] this? ")),
        Turn(Role.ASSISTANT, ("a dog</s>",)),
        Turn(Role.USER, ("and", "red", photos[0])),
    ]
    inputs = case.processor.encode_chat(messages)
    expected = case.prompt(chat_prompt(turns, tokenizer=case.tokenizer, system=SYSTEM_IMAGE))
    assert inputs["input_ids"][0].tolist() == expected.tokens.tolist()
    assert len(inputs["pixel_values"]) == 2


def test_round_trip_of_save_pretrained(case, tmp_path):
    case.theirs.save_pretrained(tmp_path)
    case.processor.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).state_dict()
    state = case.theirs.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert processor("a dog")["input_ids"].tolist() == case.processor("a dog")["input_ids"].tolist()
    pieces = case.folder / "tokenizer.model"
    prepare_import([tmp_path], tokenizer=pieces).write(tmp_path / "model")
    assert_same_params(load_model(tmp_path / "model").params, case.params)


def test_device_map(case):
    pytest.importorskip("accelerate")
    mapped = transformers.AutoModel.from_pretrained(case.folder, trust_remote_code=True, device_map="auto").eval()
    inputs = case.processor("a red circle")
    assert (
        mapped.generate(**inputs, max_new_tokens=5).tolist()
        == case.theirs.generate(**inputs, max_new_tokens=5).tolist()
    )


def test_the_documented_program_runs(case, tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    page = Path(__file__).parents[2] / "docs" / "how-to" / "pytorch.md"
    programs = re.findall(r"^```py\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (program,) = (text for text in programs if "AutoModel" in text)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").symlink_to(case.folder)
    PIL.Image.new("RGB", (20, 30), "teal").save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(program, names)
    assert names["embeddings"].shape == (1, case.config.causal_former.num_image_tokens, case.config.decoder.width)
    assert case.tokenizer.user_id in names["inputs"]["input_ids"][0]


def assert_same_params(actual, expected):
    ours, theirs = (traverse_util.flatten_dict(tree, sep="/") for tree in (actual, expected))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(np.asarray(ours[name]), np.asarray(theirs[name])) for name in ours)
