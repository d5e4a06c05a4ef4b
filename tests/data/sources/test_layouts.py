"""Each layout is read into documents with the right texts and images, in order."""

import pytest

from emu_jax.data.document import Layout, Role
from emu_jax.data.sources import SOURCES, Rejected
from tests.data.sources.makers import COUNT, MAKERS, kinds, numbers, read, words

LAYOUTS = {
    "pairs": Layout.PAIR, "pairs_parquet": Layout.PAIR, "mmc4": Layout.PAGE, "obelics": Layout.PAGE,
    "webvid": Layout.VIDEO, "storyboard": Layout.STORYBOARD, "coco_karpathy": Layout.PAIR, "coco_captions": Layout.PAIR,
    "jsonl": Layout.PAIR, "preferences": Layout.PREFERENCE,
}  # fmt: skip


def test_every_source_is_tested():
    assert MAKERS.keys() == SOURCES.keys()


@pytest.mark.parametrize("source", MAKERS)
def test_texts_and_images_of_each_document_match(source, tmp_path):
    found = read(source, MAKERS[source](tmp_path))
    assert not [f for f in found if isinstance(f, Rejected)]
    expected = 2 * (COUNT - 1) if source == "coco_karpathy" else COUNT
    assert len(found) == len({f.key for f in found}) == expected
    for i, document in enumerate(found):
        n = i // 2 if source == "coco_karpathy" else i
        texts, images = numbers(document)
        assert texts == {n}
        assert images == (set() if source in ("sharegpt", "alpaca") else {n})
        assert document.layout is LAYOUTS.get(source, Layout.CHAT)
        assert document.source == source
        if document.layout is Layout.CHAT:
            assert document.segments[-1].role is Role.ASSISTANT
            assert all(s.role in (Role.USER, Role.ASSISTANT) for s in document.segments)
        elif document.layout is Layout.PREFERENCE:
            assert [s.role for s in document.segments] == [Role.USER, Role.USER, Role.ASSISTANT, Role.REJECTED]
        else:
            assert all(s.role is None for s in document.segments)


def test_order_within_documents(tmp_path):
    def first(source):
        folder = tmp_path / source
        folder.mkdir()
        return kinds(read(source, MAKERS[source](folder))[0])

    assert first("mmc4") == ["first.", "Image", words(0), "last."], "0.1 is below the threshold of 0.32"
    assert first("obelics") == ["Image", words(0), "more"]
    assert first("storyboard") == [words(0), "Image", "Image", "the end"]
    assert first("llava") == ["Image", words(0), "yes"]
    assert first("visdial") == ["Image", words(0), "yes", "and then", "no"]
    assert first("vqav2") == ["Image", words(0), "yes"], "the most common answer"
    assert first("sharegpt") == [words(0), "an <image> in text"]
    assert first("alpaca") == [f"say\n{words(0)}", "yes"]
