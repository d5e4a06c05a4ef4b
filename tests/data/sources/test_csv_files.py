"""A broken row of a CSV file costs only itself."""

import csv
import io
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu_jax.data.bad_data import RecordError
from emu_jax.data.limits import Limits
from emu_jax.data.sources import Outcome, Rejected
from emu_jax.data.sources.csv_files import csv_rows
from emu_jax.errors import UserError
from tests.data.sources.makers import image_file, read

HEAD = "videoid,page_dir,name\r\n"


def rows(path, text, **limits):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [row for _, row in csv_rows(path, Limits(**limits), columns=("videoid", "name"))]


def names(found):
    return ["broken" if isinstance(row, RecordError) else row["name"] for row in found]


def test_an_inch_mark_in_an_unquoted_field_is_text(tmp_path, cases):
    shutil.copy(cases / "webvid_inch_mark" / "results.csv", tmp_path)
    (tmp_path / "videos" / "0001_0050").mkdir(parents=True)
    for n in range(1000, 1030):
        (tmp_path / "videos" / "0001_0050" / f"{n}.mp4").write_bytes(image_file(n % 256))
    found = read("webvid", tmp_path / "results.csv")
    assert len(found) == 30
    assert found[5].segments[1].text == 'a 12" ruler on a desk'
    assert found[6].segments[1].text == "a box moves right, take 6"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ('1,p,a 12" ruler', 'a 12" ruler'),
        ('1,p,12"', '12"'),
        ('1,p,"quoted, ""twice"""', 'quoted, "twice"'),
        ('1,p,"over\r\ntwo lines"', "over\r\ntwo lines"),
        ('1,p,"5" tv', "5 tv"),  # the csv module appends text after a closing quote
        ('1,p,"not closed', "broken"),
        ('1,p,"', "broken"),
        ("1,p", "broken"),
        ("1,p,a,b", "broken"),
    ],
)
def test_each_row_and_only_this_row(tmp_path, line, name):
    found = names(rows(tmp_path / "a.csv", f'{HEAD}0,p,before\r\n{line}\r\n2,p,after\r\n3,p,"last, one"\r\n'))
    assert found == ["before", name, "after", "last, one"]


def test_a_stray_quote_does_not_join_rows(tmp_path):
    """The quote of row 1 would end in row 3, and the three rows would be one of the right width."""
    text = f'{HEAD}1,p,"a desk\r\n2,p,a chair\r\n3,p,a box"\r\n4,p,end\r\n'
    assert names(rows(tmp_path / "a.csv", text)) == ["broken", "a chair", 'a box"', "end"]


def test_other_broken_lines_cost_themselves(tmp_path):
    text = HEAD.encode() + b"1,p,a\r\n2,p,\xff\xfe\r\n\r\n3,p," + b"x" * 1000 + b"\r\n4,p,d\0\0\r\n5,p,e\r\n"
    assert names(rows(tmp_path / "a.csv", text, line_bytes=500)) == ["a", "broken", "broken", "broken", "e"]


def test_missing_columns_and_no_header(tmp_path):
    with pytest.raises(UserError, match="lacks name"):
        rows(tmp_path / "a.csv", "videoid,page_dir\r\n")
    with pytest.raises(UserError, match="does not start with the names"):
        rows(tmp_path / "a.csv", "x" * 1000, header_bytes=100)


def test_videos_that_were_not_downloaded(tmp_path):
    (tmp_path / "r.csv").write_text(f"{HEAD}1,p,a\n2,p,b\n")
    (tmp_path / "videos" / "p").mkdir(parents=True)
    (tmp_path / "videos" / "p" / "2.mp4").write_bytes(b"x")
    lost, found = read("webvid", tmp_path / "r.csv")
    assert lost == Rejected("webvid", "r.csv:2", "a media file is missing", "p/1.mp4", Outcome.NOT_DOWNLOADED)
    assert found.segments[1].text == "b"


fields = st.text(st.sampled_from('a",; \n12'), max_size=8)


@given(st.lists(st.tuples(fields, fields, fields), max_size=5))
def test_rows_written_by_the_csv_module_round_trip(tmp_path_factory, records):
    """Except text with a line that could be a complete row, which is ambiguous."""
    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("videoid", "page_dir", "name"), *records])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    found = rows(path, text.getvalue())
    lines = [line for record in records for field in record for line in field.split("\n")]
    if not any(line.count(",") >= 2 for line in lines):
        assert [tuple(row.values()) for row in found] == records
