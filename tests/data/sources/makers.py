"""A small data set in each published layout: COUNT documents whose text and image encode their number."""

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

from emu_jax.data.document import Image, Text, Video
from emu_jax.data.images import DecodeError, decode
from emu_jax.data.sources import SOURCES, ReadOptions, Rejected

COUNT = 6


def words(n):
    """Return text that encodes a number, with a checksum."""
    return f"image {n} {hashlib.sha1(str(n).encode()).hexdigest()[:12]}"


def number_of(text):
    match = re.search(r"image (\d+) (\w{12})", text)
    return int(match[1]) if match and words(match[1]) == match[0] else None


def image_file(n):
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8, 3), (n, 3 * n, 77), np.uint8)).save(file, "PNG")
    return file.getvalue()


@functools.lru_cache(maxsize=1000)
def number_of_image(data):
    """Return the number in the color of an image, or None if it is not one of these images."""
    pixel = decode(data)[0, 0].astype(int).tolist()
    return pixel[0] if pixel == [pixel[0], 3 * pixel[0], 77] else None


def name_of(n):
    """Return a file name such that no small change of it names another file."""
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
        (folder / f"{name_of(n)}.{kind}").write_bytes(image_file(n))


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


def make_pairs(d):
    members = []
    for n in range(COUNT):
        members += [(f"{n:05d}.jpg", image_file(n)), (f"{n:05d}.txt", words(n).encode())]
        members += [(f"{n:05d}.json", json.dumps({"caption": words(n), "url": "x"}).encode())]
    return tar_of(d / "00000.tar", members)


def make_pairs_parquet(d):
    rows = [{"jpg": image_file(n), "caption": words(n), "key": str(n)} for n in range(COUNT)]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), d / "0.parquet", row_group_size=2, write_page_checksum=True
    )
    return d / "0.parquet"


def make_mmc4(d):
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


def make_obelics(d):
    media(d / "images")
    rows = [
        {"images": [f"{name_of(n)}.png", None, None], "texts": [None, words(n), "more"], "metadata": "[]"}
        for n in range(COUNT)
    ]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), d / "0.parquet", row_group_size=2, write_page_checksum=True
    )
    return d / "0.parquet"


def make_webvid(d):
    (d / "videos" / "1_50").mkdir(parents=True)
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
    for n in range(COUNT):
        (d / "videos" / "1_50" / f"{id_of(n)}.mp4").write_bytes(image_file(n))  # the reader does not decode it
        rows.writerow([id_of(n), "u", "PT1S", "1_50", f'{words(n)}, "quoted",\nover two lines'])
    (d / "results.csv").write_text(text.getvalue())
    return d / "results.csv"


def make_storyboard(d):
    members = []
    for n in range(COUNT):
        members += [(f"video{n}.0.txt", words(n).encode()), (f"video{n}.0.png", image_file(n))]
        members += [(f"video{n}.1.txt", b""), (f"video{n}.1.png", image_file(n)), (f"video{n}.2.txt", b"the end")]
        members += [(f"video{n}.final_meta.json", b"{}")]
    return tar_of(d / "0.tar", members)


def make_llava(d):
    media(d / "images")
    turns = lambda n: [{"from": "human", "value": f"<image>\n{words(n)}"}, {"from": "gpt", "value": "yes"}]
    return write_json(
        d / "l.json", [{"id": n, "image": f"{name_of(n)}.png", "conversations": turns(n)} for n in range(COUNT)]
    )


def make_sharegpt(d):
    turns = lambda n: [{"from": "human", "value": words(n)}, {"from": "gpt", "value": "an <image> in text"}]
    return write_json(d / "s.json", [{"id": str(n), "conversations": turns(n)} for n in range(COUNT)])


def make_preferences(d):
    media(d / "images")
    rows = [
        {"prompt": words(n), "chosen": "yes", "rejected": "no", "images": [f"{name_of(n)}.png"]} for n in range(COUNT)
    ]
    return write_json(d / "p.json", rows)


def make_alpaca(d):
    return write_json(d / "a.json", [{"instruction": "say", "input": words(n), "output": "yes"} for n in range(COUNT)])


def make_videochat(d):
    media(d / "videos", kind="mp4")
    return write_json(
        d / "v.json",
        [{"video": f"{name_of(n)}.mp4", "QA": [{"i": "", "q": words(n), "a": "up"}]} for n in range(COUNT)],
    )


def make_coco(d):
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


def make_coco_captions(d):
    (d / "train2014").mkdir()
    for n in range(COUNT):
        (d / "train2014" / f"COCO_train2014_{id_of(n):012d}.jpg").write_bytes(image_file(n))
    images = [{"id": id_of(n), "file_name": f"COCO_train2014_{id_of(n):012d}.jpg"} for n in range(COUNT)]
    annotations = [{"image_id": id_of(n), "id": n, "caption": words(n)} for n in range(COUNT)]
    (d / "annotations").mkdir()
    return write_json(
        d / "annotations" / "captions_train2014.json", {"info": {}, "images": images, "annotations": annotations}
    )


def make_vqa(d, prefix=""):
    (d / "train2014").mkdir()
    for n in range(COUNT):
        (d / "train2014" / f"COCO_train2014_{id_of(n):012d}.jpg").write_bytes(image_file(n))
    questions = [{"image_id": id_of(n), "question_id": id_of(n), "question": words(n)} for n in range(COUNT)]
    answers = [
        {"image_id": id_of(n), "question_id": id_of(n), "answers": [{"answer": a} for a in ("no", "yes", "yes")]}
        for n in reversed(range(COUNT))
    ]
    write_json(d / f"{prefix}mscoco_train2014_annotations.json", {"annotations": answers})
    return write_json(d / f"{prefix}OpenEnded_mscoco_train2014_questions.json", {"questions": questions})


def make_vizwiz(d):
    media(d / "train")
    rows = [{"image": f"{name_of(n)}.png", "question": words(n), "answers": [{"answer": "yes"}]} for n in range(COUNT)]
    return write_json(d / "train.json", rows)


def make_visdial(d):
    (d / "images").mkdir()
    for n in range(COUNT):
        (d / "images" / f"{id_of(n):012d}.jpg").write_bytes(image_file(n))
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


def make_jsonl(d):
    media(d)
    path = d / "d.jsonl"
    lines = [{"layout": "pair", "segments": [{"text": words(n)}, {"image": f"{name_of(n)}.png"}]} for n in range(COUNT)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


MAKERS = {
    "pairs": make_pairs,
    "pairs_parquet": make_pairs_parquet,
    "mmc4": make_mmc4,
    "obelics": make_obelics,
    "webvid": make_webvid,
    "storyboard": make_storyboard,
    "llava": make_llava,
    "sharegpt": make_sharegpt,
    "alpaca": make_alpaca,
    "preferences": make_preferences,
    "videochat": make_videochat,
    "coco_karpathy": make_coco,
    "coco_captions": make_coco_captions,
    "vqav2": lambda d: make_vqa(d, "v2_"),
    "okvqa": make_vqa,
    "vizwiz": make_vizwiz,
    "visdial": make_visdial,
    "jsonl": make_jsonl,
}


def read(source, path, **options):
    return list(SOURCES[source].read(path, ReadOptions(**options)))


def numbers(document):
    """Return the numbers in the texts of a document, and those in its images."""
    texts = {number_of(s.text) for s in document.segments if isinstance(s, Text)} - {None}
    images = set()
    for s in document.segments:
        if isinstance(s, Image | Video):
            images.add(number_of_image(s.data))
    return texts, images


def pairs_of(found):
    """Yield the numbers of the texts and of the images of each document with both; a reject must have its reason."""
    for document in found:
        if isinstance(document, Rejected):
            assert document.reason
            continue
        try:
            texts, images = numbers(document)
        except DecodeError:
            continue
        if texts and images and None not in images:
            yield texts, images


def kinds(document):
    return [s.text if isinstance(s, Text) else type(s).__name__ for s in document.segments]
