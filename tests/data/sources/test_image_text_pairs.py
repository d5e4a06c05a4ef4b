"""Files of img2dataset, also with failed downloads."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from emu_jax.data.document import Document
from emu_jax.data.sources import Outcome, Rejected
from tests.data.sources.makers import image_file, numbers, read, tar_of, words


def test_rows_whose_download_failed_are_not_broken(cases):
    found = read("pairs_parquet", cases / "parquet_failed_downloads" / "00000.parquet")
    rejects = [f for f in found if isinstance(f, Rejected)]
    assert (len(found), len(rejects)) == (20, 7)
    assert {(r.outcome, r.reason) for r in rejects} == {(Outcome.NOT_DOWNLOADED, "failed to download")}
    assert {r.detail for r in rejects} == {"HTTP Error 404: Not Found"}


@pytest.mark.parametrize("image", ["jpg", "png", "webp", "image"])
@pytest.mark.parametrize("caption", ["caption", "txt", "text", "TEXT"])
def test_columns(tmp_path, image, caption):
    rows = [{image: image_file(n), caption: words(n)} for n in range(3)] + [{image: None, caption: words(3)}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "0.parquet")
    *found, lost = read("pairs_parquet", tmp_path / "0.parquet")
    assert [numbers(f) for f in found] == [({n}, {n}) for n in range(3)]
    assert lost.outcome is Outcome.NOT_DOWNLOADED


def test_a_damaged_row_group_costs_its_rows_and_each_is_counted(tmp_path):
    path = tmp_path / "0.parquet"
    rows = [{"jpg": image_file(n) + bytes(3000), "caption": words(n)} for n in range(12)]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), path, row_group_size=3, write_page_checksum=True, compression="none"
    )
    data = bytearray(path.read_bytes())
    start = data.index(image_file(4))
    data[start + 20] ^= 255
    path.write_bytes(data)
    found = read("pairs_parquet", path)
    assert [isinstance(f, Rejected) for f in found] == [3 <= n < 6 for n in range(12)]
    assert len({f.key for f in found}) == 12


def test_a_caption_that_is_not_utf8_costs_its_row(tmp_path):
    path = tmp_path / "0.parquet"
    captions = pyarrow.array([words(n).encode() if n != 2 else b"\xff\xfe" for n in range(5)], pyarrow.binary())
    table = pyarrow.table({"jpg": [image_file(n) for n in range(5)], "caption": captions.view(pyarrow.string())})
    pyarrow.parquet.write_table(table, path)
    found = read("pairs_parquet", path)
    assert [isinstance(f, Rejected) for f in found] == [False, False, True, False, False]


def test_tar_samples_whose_download_failed(tmp_path):
    failed = {"status": "failed_to_download", "error_message": "timed out", "caption": "x"}
    path = tar_of(
        tmp_path / "0.tar",
        [
            ("0.json", json.dumps(failed).encode()), ("0.txt", b"x"),
            ("1.jpg", image_file(1)), ("1.txt", words(1).encode()), ("1.json", b'{"status": "success"}'),
        ],
    )  # fmt: skip
    lost, found = read("pairs", path)
    assert (lost.outcome, lost.reason, lost.detail) == (Outcome.NOT_DOWNLOADED, "failed to download", "timed out")
    assert isinstance(found, Document)


def test_several_images_of_one_sample_are_ambiguous(tmp_path):
    members = [("0.jpg", image_file(1)), ("0.png", image_file(2)), ("0.txt", words(1).encode())]
    path = tar_of(tmp_path / "0.tar", members)
    (found,) = read("pairs", path)
    assert (found.reason, found.detail) == ("the sample has several images", "jpg, png")


def test_any_value_of_a_record_is_at_most_a_reject(tmp_path):
    """Metadata of any JSON type never ends the file."""
    rng = np.random.default_rng(0)
    values = [None, True, 3, 2.5, float("nan"), "text", ["gpt"], {"a": 1}, [], {}]
    members = []
    for n in range(60):
        metadata = {name: values[rng.integers(len(values))] for name in ("caption", "status", "error_message")}
        members += [(f"{n}.json", json.dumps(metadata).encode())] + ([(f"{n}.jpg", image_file(1))] if n % 2 else [])
    found = read("pairs", tar_of(tmp_path / "0.tar", members))
    assert len(found) == 60
