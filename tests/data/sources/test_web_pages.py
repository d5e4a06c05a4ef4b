"""Pages: which images are used, and what happens to a page with a broken one."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from emu_jax.data.sources import Outcome, ReadOptions, Rejected
from emu_jax.errors import UserError
from tests.data.sources.makers import COUNT, image_file, kinds, make_mmc4, name_of, read, words


def test_mmc4_threshold_and_broken_images(tmp_path):
    path = make_mmc4(tmp_path)
    all_images = read("mmc4", path, min_similarity=0.0)
    assert kinds(all_images[0]) == ["Image", "first.", "Image", words(0), "last."]
    assert {type(f) for f in read("mmc4", path, min_similarity=0.5)} == {Rejected}
    (tmp_path / "images" / f"{name_of(2)}.png").write_bytes(b"not an image")
    found = read("mmc4", path)
    assert [f.reason for f in found if isinstance(f, Rejected)] == [
        "the file is not an image of a known format",
        "no image of the page can be read",
    ]
    assert len(found) == COUNT + 1


def obelics(folder, images, texts):
    pyarrow.parquet.write_table(pyarrow.table({"images": [images], "texts": [texts]}), folder / "0.parquet")
    return read("obelics", folder / "0.parquet")


def test_obelics_images_as_bytes_and_failed_downloads(tmp_path):
    lost, found = obelics(tmp_path, [image_file(1), None, None, None], [None, words(1), None, " more "])
    assert (lost.outcome, lost.is_record) == (Outcome.NOT_DOWNLOADED, False)
    assert kinds(found) == ["Image", words(1), "more"]
    (nested,) = obelics(tmp_path, [{"bytes": image_file(1)}, None], [None, words(1)])
    assert kinds(nested) == ["Image", words(1)]


def test_invalid_obelics_pages_are_rejected_with_a_reason(tmp_path):
    (link,) = obelics(tmp_path, ["https://example.com/a.jpg", None], [None, words(1)])
    assert "still a link" in link.reason
    (both,) = obelics(tmp_path, [image_file(1)], [words(1)])
    assert "both image and text" in both.reason
    (uneven,) = obelics(tmp_path, [image_file(1), None], [None])
    assert uneven.detail == "2 and 1"


def test_a_similarity_that_is_not_a_number_passes_no_threshold(tmp_path):
    path = make_mmc4(tmp_path)
    path.write_text(path.read_text().replace("0.4", "NaN"))
    found = read("mmc4", path)
    assert {f.reason for f in found} == {
        "the similarity of an image is not a number",
        "no image of the page can be read",
    }
    with pytest.raises(UserError, match="min_similarity"):
        ReadOptions(min_similarity=float("nan"))


def test_missing_images_were_not_downloaded(tmp_path):
    path = make_mmc4(tmp_path)
    (tmp_path / "images" / f"{name_of(2)}.png").unlink()
    found = read("mmc4", path)
    lost = [f for f in found if isinstance(f, Rejected)]
    assert len(found) == COUNT + 1
    assert [(f.outcome, f.is_record, f.reason) for f in lost] == [
        (Outcome.NOT_DOWNLOADED, False, "a media file is missing"),
        (Outcome.NOT_DOWNLOADED, True, "no image of the page was downloaded"),
    ]


def test_any_value_in_a_page_is_at_most_a_reject(tmp_path):
    path = make_mmc4(tmp_path)
    lines = path.read_text().splitlines()
    changes = []
    for value in (None, True, 3, float("nan"), "text", ["a"], {"a": 1}, [None]):
        for change in ("text_list", "image_info", "matched_sim", "matched_text_index", "image_name", "info"):
            record = json.loads(lines[0])
            if change in record:
                record[change] = value
            elif change == "info":
                record["image_info"][0] = value
            else:
                record["image_info"][0][change] = value
            changes.append(json.dumps(record))
    path.write_text("\n".join([*changes, lines[1]]))
    found = read("mmc4", path)
    assert len([f for f in found if not isinstance(f, Rejected) or f.is_record]) == len(changes) + 1
    assert kinds(found[-1]) == ["first.", "Image", words(1), "last."]
