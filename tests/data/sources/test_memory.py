"""Files larger than memory are read a few documents at a time."""

import json
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from emu_jax.data.sources import SOURCES, ReadOptions
from tests.data.sources.makers import image_file, tar_of, words

ROWS = 400
HEAVY = 100_000  # bytes per document


def webvid(d):
    (d / "videos" / "p").mkdir(parents=True)
    (d / "videos" / "p" / "1.mp4").write_bytes(b"x")
    lines = [f'1,u,PT1S,p,"{words(n)} {"x" * HEAVY}"\r\n' for n in range(ROWS)]
    (d / "r.csv").write_text("videoid,contentUrl,duration,page_dir,name\r\n" + "".join(lines))
    return d / "r.csv"


def pairs(d):
    files = ((f"{n}.{kind}", data) for n in range(ROWS) for kind, data in (("jpg", bytes(HEAVY)), ("txt", b"x")))
    return tar_of(d / "0.tar", files)


def jsonl(d):
    (d / "1.png").write_bytes(image_file(1))
    record = {"layout": "pair", "segments": [{"image": "1.png"}, {"text": "x" * HEAVY}]}
    (d / "d.jsonl").write_text((json.dumps(record) + "\n") * ROWS)
    return d / "d.jsonl"


@pytest.mark.parametrize(("source", "make"), [("webvid", webvid), ("pairs", pairs), ("jsonl", jsonl)])
def test_reading_holds_a_few_documents(tmp_path, source, make):
    path = make(tmp_path)
    tracemalloc.start()
    count = sum(1 for _ in SOURCES[source].read(path, ReadOptions()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == ROWS
    assert peak < 20 * HEAVY < path.stat().st_size / 10


def test_a_large_row_group_is_read_page_by_page(tmp_path):
    """Measure the memory of Arrow, which Python does not count."""
    table = pyarrow.table({"jpg": [bytes([n % 256]) * HEAVY for n in range(ROWS)], "caption": ["x"] * ROWS})
    pyarrow.parquet.write_table(
        table,
        tmp_path / "0.parquet",
        row_group_size=ROWS,
        write_batch_size=8,  # values per page; otherwise the page is as large as the group
        compression="none",
        use_dictionary=False,
    )
    del table
    size = (tmp_path / "0.parquet").stat().st_size
    assert size > ROWS * HEAVY
    before, most = pyarrow.total_allocated_bytes(), 0
    for _ in SOURCES["pairs_parquet"].read(tmp_path / "0.parquet", ReadOptions()):
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert most < size / 2
