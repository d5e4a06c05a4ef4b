"""Each layout is read into documents whose text and pictures belong together; broken files cost no more."""

import csv
import functools
import hashlib
import io
import json
import re
import tarfile

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest

from emu_jax.data.document import Image, Layout, Role, Text, Video
from emu_jax.data.images import DecodeError, decode
from emu_jax.data.sources import SOURCES, ReadOptions, Rejected
from emu_jax.errors import UserError

COUNT = 6


def words(n):
    """Text that tells its number, and whether it is still the text that was written."""
    return f"picture {n} {hashlib.sha1(str(n).encode()).hexdigest()[:12]}"


def number_of(text):
    match = re.search(r"picture (\d+) (\w{12})", text)
    return int(match[1]) if match and words(match[1]) == match[0] else None


def picture(n):
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8, 3), (n, 3 * n, 77), np.uint8)).save(file, "PNG")
    return file.getvalue()


@functools.lru_cache(maxsize=1000)
def shown(data):
    """The number in a picture's colour, or None where it is not one of ours any more."""
    pixel = decode(data)[0, 0].astype(int).tolist()
    return pixel[0] if pixel == [pixel[0], 3 * pixel[0], 77] else None


def name_of(n):
    """Of a file or an image: a small change to it names nothing else."""
    return f"{n}-{hashlib.sha1(str(n).encode()).hexdigest()[:8]}"


def id_of(n):
    return int(hashlib.sha1(str(n).encode()).hexdigest()[:9], 16)


def tar_of(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def media(folder, count=COUNT, kind="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / f"{name_of(n)}.{kind}").write_bytes(picture(n))


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


def _pairs(d):
    members = []
    for n in range(COUNT):
        members += [(f"{n:05d}.jpg", picture(n)), (f"{n:05d}.txt", words(n).encode())]
        members += [(f"{n:05d}.json", json.dumps({"caption": words(n), "url": "x"}).encode())]
    return tar_of(d / "00000.tar", members)


def _pairs_parquet(d):
    rows = [{"jpg": picture(n), "caption": words(n), "key": str(n)} for n in range(COUNT)]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), d / "0.parquet", row_group_size=2, write_page_checksum=True
    )
    return d / "0.parquet"


def _mmc4(d):
    media(d / "images")
    lines = [
        {
            "text_list": ["first.", words(n), "last."],
            "image_info": [
                {"image_name": f"{name_of(n)}.png", "matched_text_index": 1, "matched_sim": 0.4},
                {"image_name": f"{name_of(n)}.png", "matched_text_index": 0, "matched_sim": 0.1},
            ],
        }
        for n in range(COUNT)
    ]
    path = d / "docs_shard_0_v3.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _obelics(d):
    media(d / "images")
    rows = [
        {"images": [f"{name_of(n)}.png", None, None], "texts": [None, words(n), "more"], "metadata": "[]"}
        for n in range(COUNT)
    ]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), d / "0.parquet", row_group_size=2, write_page_checksum=True
    )
    return d / "0.parquet"


def _webvid(d):
    (d / "videos" / "1_50").mkdir(parents=True)
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
    for n in range(COUNT):
        (d / "videos" / "1_50" / f"{id_of(n)}.mp4").write_bytes(picture(n))  # the reader does not look inside
        rows.writerow([id_of(n), "u", "PT1S", "1_50", f'{words(n)}, "quoted",\nover two lines'])
    (d / "results.csv").write_text(text.getvalue())
    return d / "results.csv"


def _storyboard(d):
    members = []
    for n in range(COUNT):
        members += [(f"video{n}.0.txt", words(n).encode()), (f"video{n}.0.png", picture(n))]
        members += [(f"video{n}.1.txt", b""), (f"video{n}.1.png", picture(n)), (f"video{n}.2.txt", b"the end")]
        members += [(f"video{n}.final_meta.json", b"{}")]
    return tar_of(d / "0.tar", members)


def _llava(d):
    media(d / "images")
    turns = lambda n: [{"from": "human", "value": f"<image>\n{words(n)}"}, {"from": "gpt", "value": "yes"}]
    return write_json(
        d / "l.json", [{"id": n, "image": f"{name_of(n)}.png", "conversations": turns(n)} for n in range(COUNT)]
    )


def _sharegpt(d):
    turns = lambda n: [{"from": "human", "value": words(n)}, {"from": "gpt", "value": "an <image> in text"}]
    return write_json(d / "s.json", [{"id": str(n), "conversations": turns(n)} for n in range(COUNT)])


def _alpaca(d):
    return write_json(d / "a.json", [{"instruction": "say", "input": words(n), "output": "yes"} for n in range(COUNT)])


def _videochat(d):
    media(d / "videos", kind="mp4")
    return write_json(
        d / "v.json",
        [{"video": f"{name_of(n)}.mp4", "QA": [{"i": "", "q": words(n), "a": "up"}]} for n in range(COUNT)],
    )


def _coco(d):
    media(d / "val2014")
    images = [
        {
            "filepath": "val2014",
            "filename": f"{name_of(n)}.png",
            "split": "test" if n == COUNT - 1 else "restval",
            "sentences": [{"raw": words(n)}, {"raw": f"again {words(n)}"}],
        }
        for n in range(COUNT)
    ]
    return write_json(d / "dataset_coco.json", {"images": images, "dataset": "coco"})


def _vqa(d, prefix=""):
    (d / "train2014").mkdir()
    for n in range(COUNT):
        (d / "train2014" / f"COCO_train2014_{id_of(n):012d}.jpg").write_bytes(picture(n))
    questions = [{"image_id": id_of(n), "question_id": id_of(n), "question": words(n)} for n in range(COUNT)]
    answers = [
        {"image_id": id_of(n), "question_id": id_of(n), "answers": [{"answer": a} for a in ("no", "yes", "yes")]}
        for n in reversed(range(COUNT))
    ]
    write_json(d / f"{prefix}mscoco_train2014_annotations.json", {"annotations": answers})
    return write_json(d / f"{prefix}OpenEnded_mscoco_train2014_questions.json", {"questions": questions})


def _vizwiz(d):
    media(d / "train")
    rows = [{"image": f"{name_of(n)}.png", "question": words(n), "answers": [{"answer": "yes"}]} for n in range(COUNT)]
    return write_json(d / "train.json", rows)


def _visdial(d):
    (d / "images").mkdir()
    for n in range(COUNT):
        (d / "images" / f"{id_of(n):012d}.jpg").write_bytes(picture(n))
    dialogs = [
        {
            "image_id": id_of(n),
            "caption": "c",
            "dialog": [{"question": 111 * (n + 1), "answer": 0}, {"question": 0, "answer": 1}],
        }
        for n in range(COUNT)
    ]
    questions = [words(i // 111 - 1) if i and i % 111 == 0 else "and then" for i in range(111 * COUNT + 1)]
    return write_json(
        d / "visdial_1.0_train.json", {"data": {"dialogs": dialogs, "questions": questions, "answers": ["yes", "no"]}}
    )


def _jsonl(d):
    media(d)
    path = d / "d.jsonl"
    lines = [{"layout": "pair", "segments": [{"text": words(n)}, {"image": f"{name_of(n)}.png"}]} for n in range(COUNT)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


MAKERS = {
    "pairs": _pairs, "pairs_parquet": _pairs_parquet, "mmc4": _mmc4, "obelics": _obelics, "webvid": _webvid,
    "storyboard": _storyboard, "llava": _llava, "sharegpt": _sharegpt, "alpaca": _alpaca, "videochat": _videochat,
    "coco_karpathy": _coco, "vqav2": lambda d: _vqa(d, "v2_"), "okvqa": _vqa, "vizwiz": _vizwiz, "visdial": _visdial,
    "jsonl": _jsonl,
}  # fmt: skip
LAYOUTS = {
    "pairs": Layout.PAIR, "pairs_parquet": Layout.PAIR, "mmc4": Layout.PAGE, "obelics": Layout.PAGE,
    "webvid": Layout.VIDEO, "storyboard": Layout.STORYBOARD, "coco_karpathy": Layout.PAIR, "jsonl": Layout.PAIR,
}  # fmt: skip


def read(source, path, **options):
    return list(SOURCES[source].read(path, ReadOptions(**options)))


def numbers(document):
    """The numbers in a document's texts, and those in its pictures."""
    texts = {number_of(s.text) for s in document.segments if isinstance(s, Text)} - {None}
    pictures = set()
    for s in document.segments:
        if isinstance(s, Image | Video):
            pictures.add(shown(s.data))
    return texts, pictures


def test_every_source_is_tried_here():
    assert MAKERS.keys() == SOURCES.keys()


@pytest.mark.parametrize("source", MAKERS)
def test_text_and_pictures_of_each_document_belong_together(source, tmp_path):
    found = read(source, MAKERS[source](tmp_path))
    assert not [f for f in found if isinstance(f, Rejected)]
    expected = 2 * (COUNT - 1) if source == "coco_karpathy" else COUNT
    assert len(found) == len({f.key for f in found}) == expected
    for i, document in enumerate(found):
        n = i // 2 if source == "coco_karpathy" else i
        texts, pictures = numbers(document)
        assert texts == {n}
        assert pictures == (set() if source in ("sharegpt", "alpaca") else {n})
        assert document.layout is LAYOUTS.get(source, Layout.CHAT)
        assert document.source == source
        if document.layout is Layout.CHAT:
            assert document.segments[-1].role is Role.ASSISTANT
            assert all(s.role in (Role.USER, Role.ASSISTANT) for s in document.segments)
        else:
            assert all(s.role is None for s in document.segments)


def kinds(document):
    return [s.text if isinstance(s, Text) else type(s).__name__ for s in document.segments]


def test_the_order_within_documents(tmp_path):
    def first(source):
        folder = tmp_path / source
        folder.mkdir()
        return kinds(read(source, MAKERS[source](folder))[0])

    assert first("mmc4") == ["first.", "Image", words(0), "last."], "0.1 is below the threshold of 0.32"
    assert first("obelics") == ["Image", words(0), "more"]
    assert first("storyboard") == [words(0), "Image", "Image", "the end"]
    assert first("llava") == ["Image", words(0), "yes"]
    assert first("visdial") == ["Image", words(0), "yes", "and then", "no"]
    assert first("vqav2") == ["Image", words(0), "yes"], "the answer most people gave"
    assert first("sharegpt") == [words(0), "an <image> in text"]
    assert first("alpaca") == [f"say\n{words(0)}", "yes"]


def test_mmc4_threshold_and_broken_images(tmp_path):
    path = _mmc4(tmp_path)
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


def test_media_folder(tmp_path):
    path = _llava(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert all(isinstance(f, Rejected) and "is not there" in f.reason for f in read("llava", path))
    assert len([f for f in read("llava", path, media=tmp_path / "elsewhere") if not isinstance(f, Rejected)]) == COUNT


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../secret.png", "", "a\x00b"])
def test_a_stranger_s_file_names_stay_in_their_folder(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(picture(0))
    (tmp_path / "set").mkdir()
    segments = [{"image": name}, {"text": "x"}]
    path = tmp_path / "set" / "d.jsonl"
    path.write_text(json.dumps({"layout": "pair", "segments": segments}))
    (found,) = read("jsonl", path)
    assert "is not taken" in found.reason


def test_a_tar_cut_in_the_middle_loses_only_its_end(tmp_path):
    whole = _pairs(tmp_path).read_bytes()
    for cut in range(600, len(whole) - 1024, 700):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        *good, last = read("pairs", tmp_path / "cut.tar")
        assert isinstance(last, Rejected)
        assert "lost" in last.reason
        assert [numbers(f) for f in good] == [({n}, {n}) for n in range(len(good))]


def test_members_out_of_place_never_pair_up(tmp_path):
    """Two texts for one picture, or parts of one sample apart: no guess is made."""
    path = tar_of(
        tmp_path / "t.tar",
        [("a.jpg", picture(1)), ("a.txt", b"one"), ("a.txt", b"two"), ("b.jpg", picture(2)), ("c.txt", b"three")],
    )
    reasons = [f.reason for f in read("pairs", path)]
    assert reasons == ["a file of the sample comes twice", "the sample has no text", "the sample has no image"]


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("a.txt", b" \n"), "text is empty"),
        (("a.txt", b"\xff\xfe"), "not UTF-8"),
        (("a.json", b"{"), "cannot be parsed"),
        (("a.json", b'{"a": 1, "a": 2}'), "same name twice"),
    ],
)
def test_reasons_are_told(tmp_path, member, reason):
    path = tar_of(tmp_path / "t.tar", [("a.jpg", picture(1)), member])
    (found,) = read("pairs", path)
    assert reason in found.reason
    assert found.key == "t.tar:a"


def test_a_json_line_cut_in_the_middle_and_unknown_fields(tmp_path):
    path = _mmc4(tmp_path)
    lines = path.read_text().splitlines()
    lines[1] = lines[1][: len(lines[1]) // 2]
    lines[2] = json.dumps({**json.loads(lines[2]), "a_field_nobody_knows": [1, {"x": None}]})
    path.write_text("\n".join(lines))
    found = read("mmc4", path)
    assert [isinstance(f, Rejected) for f in found] == [False, True, False, False, False, False]
    assert found[1].key == f"{path.name}:2"


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_a_file_of_another_kind_is_the_user_s_to_mend(source, tmp_path):
    path = tmp_path / "file_questions.json"
    path.write_bytes(b"\x00\x01 neither tar nor json nor parquet nor csv")
    if SOURCES[source].read is SOURCES["jsonl"].read or source == "mmc4":
        assert all(isinstance(f, Rejected) for f in read(source, path))
    else:
        with pytest.raises(UserError, match="file_questions"):
            read(source, path)
    with pytest.raises(UserError, match=r"cannot be read|is not a parquet"):
        read(source, tmp_path / "missing_questions.json")


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("source", MAKERS)
def test_mutated_files(source, count, tmp_path):
    """Bytes changed, cut out, doubled, the end cut off: no crash, and what is read still belongs together."""
    rng = np.random.default_rng(list(source.encode()))
    path = MAKERS[source](tmp_path)
    whole = path.read_bytes()
    documents = 0
    for i in range(count):
        data = bytearray(whole)
        at, length = int(rng.integers(len(data))), int(rng.integers(1, 40))
        match i % 4:
            case 0:
                for place in rng.integers(0, len(data), rng.integers(1, 6)):
                    data[place] = rng.integers(0, 256)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                del data[at:]
        path.write_bytes(data)
        try:
            found = read(source, path)
        except UserError:
            continue
        for document in found:
            if isinstance(document, Rejected):
                assert document.reason
                continue
            try:
                texts, pictures = numbers(document)
            except DecodeError:
                continue
            if pictures and texts and None not in pictures:
                assert texts == pictures, (source, i)
                documents += 1
    if source not in ("sharegpt", "alpaca"):
        assert documents > count // 10, "the mutations must leave something to compare"
