"""Pages: which images are used, and what happens to a page with a broken one."""

import pyarrow
import pyarrow.parquet

from emu_jax.data.sources import Outcome, Rejected
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
