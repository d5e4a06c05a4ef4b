"""Text generation compared with `generate` of transformers, on small random LLaMAs where `</s>` is frequent.

transformers has counted lengths differently since it rewrote its beam search. Cases that depend on the length penalty
are therefore in tests/generation/test_beam.py, which follows the rules of transformers 4.29; the others are here.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from emu_jax.convert.emu_table import DECODER, decoder_rows
from emu_jax.generation.options import TextOptions
from emu_jax.generation.prompt import PromptBatch
from emu_jax.generation.sampling import compile_options
from emu_jax.generation.text import generate_tokens
from emu_jax.models.emu import Emu
from tests.convert.release import small_config, with_parts

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

V, BOS, EOS, PAD, CAPACITY = 24, 1, 2, 23, 12
LENGTHS = (3, 9, 6, 1)
CONFIG = with_parts(small_config(), decoder={"vocab_size": V})


def random_llama(seed):
    torch.manual_seed(seed)
    decoder = CONFIG.decoder
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=V,
            hidden_size=decoder.width,
            intermediate_size=decoder.mlp_dim,
            num_hidden_layers=decoder.num_layers,
            num_attention_heads=decoder.num_heads,
            rms_norm_eps=decoder.norm_eps,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.5)
    return theirs


def params_of(theirs):
    """Return the parameters of an Emu that text generation uses."""
    state = {DECODER + name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    params = {}
    for row in decoder_rows(CONFIG.decoder):
        layers = [row.to_ours(state[name]) for name in row.names]
        *folders, leaf = row.path.split("/")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = jnp.asarray(layers[0] if row.layers is None else np.stack(layers))
    return params


def random_prompts(seed):
    """Return left-padded tokens and their mask."""
    rng = np.random.default_rng(seed)
    tokens = np.full((len(LENGTHS), max(LENGTHS)), PAD, np.int32)
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[-length:] = [BOS, *rng.integers(3, PAD, length - 1)]
    return tokens, tokens != PAD


def their_ids(theirs, tokens, mask, options):
    options = dict(options)
    min_new_tokens = max(options.pop("min_length", 0) - 1, 0)  # our minimum length includes <s>
    with torch.no_grad():
        generated = theirs.generate(
            input_ids=torch.full((len(tokens), 1), BOS),
            inputs_embeds=theirs.model.embed_tokens(torch.from_numpy(tokens).long()),
            attention_mask=torch.from_numpy(mask).long(),
            do_sample=False,
            min_new_tokens=min_new_tokens,
            **options,
        )
    return [until_end(row) for row in generated[:, 1:].tolist()]


def our_ids(params, tokens, mask, options):
    chosen = TextOptions(**options)
    search, controls = compile_options(
        chosen, capacity=CAPACITY, max_new_tokens=chosen.max_new_tokens, bos_id=BOS, eos_id=EOS, pad_id=PAD
    )
    prompts = PromptBatch(tokens=jnp.asarray(tokens), is_token=jnp.asarray(mask), visual_embeddings=None, slots=None)
    output = generate_tokens(params, prompts, controls, model=Emu(CONFIG, image_token_id=V), search=search)
    return [row[1:n].tolist() for row, n in zip(np.asarray(output.tokens), output.lengths, strict=True)]


def until_end(ids):
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


CASES = {
    "greedy": [{"max_new_tokens": CAPACITY}, {"max_new_tokens": 5, "min_length": 4}],
    "greedy, penalties": [
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 3, "max_new_tokens": CAPACITY},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "max_new_tokens": CAPACITY, "min_length": 8},
    ],
    "beams": [
        {"num_beams": 5, "length_penalty": 0.0, "max_new_tokens": CAPACITY},
        {"num_beams": 5, "length_penalty": 0.0, "max_new_tokens": 7, "min_length": 5},
        {"num_beams": 5, "length_penalty": 1.0, "max_new_tokens": CAPACITY, "min_length": CAPACITY + 1},
        {"num_beams": 5, "length_penalty": -1.0, "max_new_tokens": CAPACITY, "min_length": CAPACITY + 1},
    ],
    "beams, penalties": [
        {"num_beams": 5, "length_penalty": 0.0, "repetition_penalty": 1.5, "no_repeat_ngram_size": 3,
         "max_new_tokens": CAPACITY},
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
def test_ids_are_equal_in_every_position(kind):
    """Compare left-padded batches, and each prompt without padding."""
    ended = total = 0
    for seed in range(4):
        theirs = random_llama(seed)
        params = params_of(theirs)
        tokens, mask = random_prompts(seed)
        for options in CASES[kind]:
            ours = our_ids(params, tokens, mask, options)
            if "repetition_penalty" not in options:  # transformers skips as many ids as the prompt has padding
                assert ours == their_ids(theirs, tokens, mask, options), (seed, options)
            for row, length in enumerate(LENGTHS):
                expected = their_ids(theirs, tokens[row : row + 1, -length:], mask[row : row + 1, -length:], options)
                assert [ours[row]] == expected, (seed, row, options)
            total += len(ours)
            ended += sum(ids[-1] == EOS for ids in ours)
    assert 0 < ended < total  # both cases occur
