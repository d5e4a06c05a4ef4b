"""Pages: which images stay, and what happens to a page around a broken one."""

import pyarrow
import pyarrow.parquet

from emu_jax.data.sources import Rejected
from tests.data.sources.makers import COUNT, kinds, make_mmc4, name_of, picture, read, words


def test_mmc4_threshold_and_broken_images(tmp_path):
    path = make_mmc4(tmp_path)
    all_images = read("mmc4", path, min_similarity=0.0)
    assert kinds(all_images[0]) == ["Image", "first.", "Image", words(0), "last."]
    assert {type(f) for f in read("mmc4", path, min_similarity=0.5)} == {Rejected}
    (tmp_path / "images" / f"{name_of(2)}.png").write_bytes(b"no picture")
    found = read("mmc4", path)
    assert [f.reason for f in found if isinstance(f, Rejected)] == [
        "the file is not an image of a known format",
        "no image of the page is left",
    ]
    assert len(found) == COUNT + 1


def obelics(folder, images, texts):
    pyarrow.parquet.write_table(pyarrow.table({"images": [images], "texts": [texts]}), folder / "0.parquet")
    (found,) = read("obelics", folder / "0.parquet")
    return found


def test_obelics_images_as_bytes_and_places_without_a_download(tmp_path):
    found = obelics(tmp_path, [picture(1), None, None, None], [None, words(1), None, " more "])
    assert kinds(found) == ["Image", words(1), "more"]
    nested = obelics(tmp_path, [{"bytes": picture(1)}, None], [None, words(1)])
    assert kinds(nested) == ["Image", words(1)]


def test_obelics_pages_that_cannot_be_laid_out_are_told(tmp_path):
    link = obelics(tmp_path, ["https://example.com/a.jpg", None], [None, words(1)])
    assert "still a link" in link.reason
    both = obelics(tmp_path, [picture(1)], [words(1)])
    assert "both image and text" in both.reason
    uneven = obelics(tmp_path, [picture(1), None], [None])
    assert "2 images stand beside 1 texts" in uneven.reason
