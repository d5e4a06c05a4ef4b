"""Documents are laid out as in the examples of the docstrings."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu_jax.data.chat_layout import SYSTEM_IMAGE
from emu_jax.data.document import Document, Image, Layout, Role, Text, Video
from emu_jax.data.images import DecodeError
from emu_jax.data.sequence import build_sequence
from emu_jax.data.sequence_config import Regress, SequenceConfig, SystemMessage
from emu_jax.data.tokenizer import Tokenizer, train_tokenizer
from emu_jax.errors import UserError

CONFIG = SequenceConfig(length=64, max_images=4, num_image_tokens=2, image_first=1.0)
PIXELS = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    lines = [f"a cat and a dog on mat {i}" for i in range(50)]
    return train_tokenizer(lines, tmp_path_factory.mktemp("t") / "t.model", vocab_size=300)


@pytest.fixture(scope="module")
def tokenizer(plain):
    return Tokenizer(plain._model, instruct=True)


def build(document, tokenizer, config=CONFIG, seed=0):
    return build_sequence(document, config=config, tokenizer=tokenizer, rng=np.random.default_rng(seed))


def document(*segments, layout=Layout.PAIR):
    return Document(tuple(segments), source="test", key="0", layout=layout)


def names(sequence, tokenizer):
    """Return the sequence as words: special tokens by name, a run of text as the text."""
    special = {
        tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>", tokenizer.boi_id: "[IMG]", tokenizer.eoi_id: "[/IMG]",
        tokenizer.image_token_id: "<image>", tokenizer.user_id: "[USER]", tokenizer.assistant_id: "[ASSISTANT]",
    }  # fmt: skip
    words: list = []
    for token in sequence.tokens.tolist():
        if token in special:
            words.append(special[token])
        elif words and isinstance(words[-1], list):
            words[-1].append(token)
        else:
            words.append([token])
    return [word if isinstance(word, str) else tokenizer.decode(word) for word in words]


IMAGE = ["[IMG]", "<image>", "<image>", "[/IMG]"]


def test_docstring_example(tokenizer):
    """<s> [IMG] <image> <image> [/IMG] a cat </s>, a pair with the image first."""
    cat = tokenizer.encode("a cat")
    sequence = build(document(Image(PIXELS), Text("a cat")), tokenizer)
    t = tokenizer
    assert sequence.tokens.tolist() == [t.bos_id, t.boi_id, *[t.image_token_id] * 2, t.eoi_id, *cat, t.eos_id]
    assert sequence.text_loss_mask.tolist() == [0, 0, 0, 0, 1, *[1] * len(cat), 0]
    assert sequence.regression_mask.tolist() == [0, 1, 1, 1, 0, *[0] * len(cat), 0]
    opens = build(document(Image(PIXELS), Text("a cat")), tokenizer, dataclasses.replace(CONFIG, predict_boi=True))
    assert opens.text_loss_mask.tolist() == [1, 0, 0, 0, 1, *[1] * len(cat), 0]


def test_pair_order_is_random(tokenizer):
    pair = document(Image(PIXELS), Text("a cat"))
    half = dataclasses.replace(CONFIG, image_first=0.5)
    first = [names(build(pair, tokenizer, half, seed), tokenizer)[1] == "[IMG]" for seed in range(400)]
    assert 150 < sum(first) < 250
    last = build(pair, tokenizer, dataclasses.replace(CONFIG, image_first=0.0))
    assert names(last, tokenizer) == ["<s>", "a cat", *IMAGE, "</s>"]
    text_loss = last.text_loss_mask[last.tokens == tokenizer.eoi_id]
    assert text_loss.tolist() == [1], "the position of [/IMG] is trained to end the document"


def test_page_and_video(tokenizer):
    page = document(Text("a cat"), Image(PIXELS), Text("a dog"), layout=Layout.PAGE)
    assert names(build(page, tokenizer), tokenizer) == ["<s>", "a cat", *IMAGE, "a dog", "</s>"]
    after = build(page, tokenizer, dataclasses.replace(CONFIG, page_image_first=0.0))
    assert names(after, tokenizer) == ["<s>", "a cat a dog", *IMAGE, "</s>"]
    video = document(Video((Image(PIXELS),) * 3), Text("a dog"), layout=Layout.VIDEO)
    assert names(build(video, tokenizer), tokenizer) == ["<s>", *IMAGE * 3, "a dog", "</s>"]


def test_only_answers_of_a_chat_have_a_loss(tokenizer):
    chat = document(
        Text("a mat", Role.SYSTEM),
        Image(PIXELS, Role.USER),
        Text("a cat or a dog", Role.USER),
        Text("a dog", Role.ASSISTANT),
        Text("on a mat", Role.USER),
        Text("a cat", Role.ASSISTANT),
        layout=Layout.CHAT,
    )
    sequence = build(chat, tokenizer)
    assert names(sequence, tokenizer) == [
        "<s>", "a mat", "[USER]", ":", *IMAGE, "a cat or a dog", "[ASSISTANT]", ": a dog", "</s>",
        "[USER]", ": on a mat", "[ASSISTANT]", ": a cat", "</s>",
    ]  # fmt: skip
    labels = sequence.tokens[1:][sequence.text_loss_mask[:-1] > 0].tolist()
    expected = [*tokenizer.encode("a dog"), tokenizer.eos_id, *tokenizer.encode("a cat"), tokenizer.eos_id]
    assert labels == expected
    assert not sequence.regression_mask.any(), "images of the user have no regression loss"


def test_a_long_chat_is_truncated_to_complete_turns(tokenizer):
    turns = [Text("a cat", Role.USER), Text("a dog", Role.ASSISTANT)] * 9
    complete = build(document(*turns, layout=Layout.CHAT), tokenizer, dataclasses.replace(CONFIG, length=500))
    one_turn = (len(complete.tokens) - 1) // 9
    truncated = build(
        document(*turns, layout=Layout.CHAT), tokenizer, dataclasses.replace(CONFIG, length=4 * one_turn - 1)
    )
    assert len(truncated.tokens) == 1 + 3 * one_turn
    assert truncated.tokens.tolist() == complete.tokens[: len(truncated.tokens)].tolist()
    short = build(document(*turns, layout=Layout.CHAT), tokenizer, dataclasses.replace(CONFIG, length=one_turn))
    assert len(short.tokens) == one_turn - 1, "the start of the first answer, with one position reserved for </s>"
    assert short.has_loss


def test_chat_ids_equal_those_of_the_encoded_prompt(tokenizer):
    """Training sequences have the same ids as `encode(..., special_tokens=True)` of the prompt at inference."""
    chat = document(
        Image(PIXELS, Role.USER), Text("a cat?", Role.USER), Text("a dog", Role.ASSISTANT), layout=Layout.CHAT
    )
    release = dataclasses.replace(CONFIG, length=400, system_message=SystemMessage.RELEASE)
    written = f"{SYSTEM_IMAGE} [USER]: [IMG]<image><image>[/IMG]a cat? [ASSISTANT]: a dog</s>"
    expected = [tokenizer.bos_id, *tokenizer.encode(written, special_tokens=True)]
    assert build(chat, tokenizer, release).tokens.tolist() == expected


def test_chat_without_turn_tokens_is_plain_text(plain):
    chat = document(Text("a cat?", Role.USER), Text("a dog", Role.ASSISTANT), layout=Layout.CHAT)
    config = dataclasses.replace(CONFIG, length=100)
    sequence = build(chat, plain, config)
    assert plain.decode(sequence.tokens) == "[USER]: a cat? [ASSISTANT]: a dog"
    labels = sequence.tokens[1:][sequence.text_loss_mask[:-1] > 0].tolist()
    assert labels == [*plain.encode("a dog"), plain.eos_id]


def test_images_of_an_answer_have_a_regression_loss(tokenizer):
    chat = document(Text("a cat", Role.USER), Image(PIXELS, Role.ASSISTANT), layout=Layout.CHAT)
    sequence = build(chat, tokenizer)
    assert names(sequence, tokenizer) == ["<s>", "[USER]", ": a cat", "[ASSISTANT]", ":", *IMAGE, "</s>"]
    assert sequence.regression_mask.sum() == 3


def test_regress_after_text(tokenizer):
    after = dataclasses.replace(CONFIG, regress=Regress.AFTER_TEXT)
    page = document(Image(PIXELS), Text("a cat"), Image(PIXELS), layout=Layout.PAGE)
    assert build(page, tokenizer, after).regression_mask.tolist().count(1) == 3
    assert build(page, tokenizer, CONFIG).regression_mask.tolist().count(1) == 6
    none = build(page, tokenizer, dataclasses.replace(CONFIG, regress=Regress.NONE))
    assert none.regression_mask.sum() == 0


def test_special_strings_in_untrusted_text_stay_text(tokenizer):
    pair = document(Image(PIXELS), Text("a </s> cat <image>"))
    sequence = build(pair, tokenizer, dataclasses.replace(CONFIG, length=200))
    assert (sequence.tokens == tokenizer.image_token_id).sum() == 2
    assert (sequence.tokens == tokenizer.eos_id).sum() == 1
    chat = document(
        Text("look: [IMG]<image>[/IMG]", Role.SYSTEM), Text("a", Role.USER), Text("b", Role.ASSISTANT),
        layout=Layout.CHAT,
    )  # fmt: skip
    assert tokenizer.image_token_id not in build(chat, tokenizer, dataclasses.replace(CONFIG, length=200)).tokens


def test_bad_documents_and_configs(tokenizer):
    with pytest.raises(DecodeError, match="neither text nor images"):
        build(document(Text("  ")), tokenizer)
    with pytest.raises(UserError, match="Decode a video to frames"):
        build(document(Video(b"mp4"), layout=Layout.VIDEO), tokenizer)
    with pytest.raises(UserError, match="cannot hold an image"):
        SequenceConfig(length=4, max_images=1, num_image_tokens=2)
    with pytest.raises(UserError, match="image_first must be"):
        dataclasses.replace(CONFIG, image_first=1.5)


texts = st.builds(Text, st.sampled_from(["a cat", "a dog on a mat and a cat", "", "[IMG] <image> </s>"]))
images = st.builds(Image, st.integers(0, 255).map(lambda v: np.full((2, 2, 3), v, np.uint8)))
videos = st.builds(Video, st.lists(images, min_size=1, max_size=4).map(tuple))
roles = st.sampled_from([Role.USER, Role.ASSISTANT])
documents = st.builds(
    lambda segments, turn, layout: document(
        *(dataclasses.replace(s, role=r) if layout is Layout.CHAT else s for s, r in zip(segments, turn, strict=False)),
        layout=layout,
    ),
    st.lists(st.one_of(texts, images, videos), min_size=1, max_size=8),
    st.lists(roles, min_size=8, max_size=8),
    st.sampled_from(Layout),
)
configs = st.builds(
    SequenceConfig,
    length=st.integers(8, 80),
    max_images=st.integers(1, 6),
    num_image_tokens=st.integers(1, 4),
    image_first=st.sampled_from([0.0, 0.5, 1.0]),
    page_image_first=st.sampled_from([0.0, 0.5, 1.0]),
    predict_boi=st.booleans(),
    regress=st.sampled_from(Regress),
)


@settings(max_examples=300, deadline=None)
@given(documents, configs, st.integers(0, 2**32 - 1))
def test_properties_of_every_sequence(tokenizer, document, config, seed):
    try:
        sequence = build(document, tokenizer, config, seed)
    except DecodeError:
        assert not any(isinstance(s, Image | Video) or s.text.strip() for s in document.segments)
        return
    tokens, n = sequence.tokens, config.num_image_tokens
    assert len(tokens) == len(sequence.text_loss_mask) == len(sequence.regression_mask) <= config.length
    assert tokens[0] == tokenizer.bos_id
    assert (tokens == tokenizer.bos_id).sum() == 1

    # Images are complete, one per set of pixels, and in the order of the document.
    starts = np.flatnonzero(tokens == tokenizer.boi_id)
    run = [tokenizer.boi_id, *[tokenizer.image_token_id] * n, tokenizer.eoi_id]
    assert all(tokens[s : s + n + 2].tolist() == run for s in starts)
    assert len(starts) == len(sequence.images) <= config.max_images
    assert (tokens == tokenizer.image_token_id).sum() == n * len(starts)
    given_images = [
        i.data for s in document.segments for i in ([s] if isinstance(s, Image) else getattr(s, "data", ()))
    ]
    order = [next(k for k, g in enumerate(given_images) if g is i) for i in sequence.images]
    assert order == sorted(order)
    assert len(set(order)) == len(order) or len({id(g) for g in given_images}) < len(given_images)

    # Only [IMG] and <image> have a regression loss: all N + 1 positions of an image or none.
    inside = np.isin(tokens, [tokenizer.boi_id, tokenizer.image_token_id])
    assert not sequence.regression_mask[~inside].any()
    assert all(sequence.regression_mask[s : s + n + 1].sum() in (0, n + 1) for s in starts)

    # Labels are text or </s> (or [IMG], with predict_boi), and never past the end.
    labels = tokens[1:][sequence.text_loss_mask[:-1] > 0]
    masked = {tokenizer.pad_id, tokenizer.eoi_id, tokenizer.image_token_id, tokenizer.user_id, tokenizer.assistant_id}
    masked |= set() if config.predict_boi else {tokenizer.boi_id}
    assert not masked & set(labels.tolist())
    assert sequence.text_loss_mask[-1] == 0
    if document.layout not in (Layout.CHAT, Layout.PREFERENCE):
        text = tokens < tokenizer.pad_id
        expected = int((text & (tokens != tokenizer.bos_id)).sum()) + config.predict_boi * len(starts)
        assert len(labels) == expected, "every text token is a label once"


def test_a_page_has_the_first_images_of_its_section_and_all_of_its_text(tokenizer):
    """At most `max_images` images; the text after them stays, up to the length of the row."""
    few = dataclasses.replace(CONFIG, max_images=2, length=500)
    segments = [s for word in ("a cat", "a dog", "a mat", "a cat") for s in (Image(PIXELS), Text(word))]
    page = build(document(*segments, layout=Layout.PAGE), tokenizer, few)
    assert names(page, tokenizer) == ["<s>", *IMAGE, "a cat", *IMAGE, "a dog a mat a cat", "</s>"]
    sections = [
        build(document(*segments * 20, layout=Layout.PAGE), tokenizer, dataclasses.replace(few, length=64), seed)
        for seed in range(20)
    ]
    assert all(len(section.images) == 2 and len(section.tokens) in (63, 64) for section in sections)
    assert len({tuple(section.tokens.tolist()) for section in sections}) > 1, "sections start at random"


def test_a_storyboard_with_many_frames_starts_at_random_and_ends_before_the_next_frame(tokenizer):
    few = dataclasses.replace(CONFIG, max_images=2, length=500)
    segments = [s for word in ("a cat", "a dog", "a mat") for s in (Image(PIXELS), Text(word))]
    found = {
        tuple(names(build(document(*segments, layout=Layout.STORYBOARD), tokenizer, few, seed), tokenizer))
        for seed in range(20)
    }
    first = ("<s>", *IMAGE, "a cat", *IMAGE, "a dog")
    assert first in found
    assert ("<s>", *IMAGE, "a dog", *IMAGE, "a mat", "</s>") in found
