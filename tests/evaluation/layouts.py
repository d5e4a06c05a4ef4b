"""Tiny benchmarks in their published layouts: a few examples each, with images or videos that are really decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image

WORDS = ("red", "dog", "table", "small", "cat", "blue", "two", "park")
COUNT = 3


def write_layout(task: str, root: Path) -> Path:
    """Write ROOT/TASK and the images it names; return ROOT."""
    _WRITERS[task](root)
    return root


def image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (20, 24, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(path)


def video(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(10):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def caption(number: int) -> str:
    rng = np.random.default_rng(number)
    return "a " + " ".join(rng.choice(WORDS, 4))


def _karpathy(root: Path, task: str, file: str, folder: str) -> None:
    images = []
    for n, split in enumerate(["train"] * 4 + ["test"] * COUNT, start=1):
        name = f"{n}.jpg" if task == "flickr30k" else f"COCO_val2014_{n:012d}.jpg"
        row = {"filename": name, "imgid": n, "split": split, "sentids": [n]}
        row["sentences"] = [{"raw": caption(10 * n + i), "imgid": n, "sentid": i, "tokens": []} for i in range(2)]
        if task == "coco_karpathy":
            row |= {"filepath": "val2014", "cocoid": n}
        images.append(row)
        image(root / folder / name, n)
    dump(root / task / file, {"images": images, "dataset": file.removeprefix("dataset_").removesuffix(".json")})


def _nocaps(root: Path) -> None:
    domains = ("in-domain", "near-domain", "out-domain")
    images = [
        {"id": n, "file_name": f"{n:04x}.jpg", "coco_url": "", "open_images_id": f"{n}", "domain": domains[n % 3]}
        for n in range(6)
    ]
    captions = [{"image_id": n, "id": 10 * n + i, "caption": caption(10 * n + i)} for n in range(6) for i in range(2)]
    dump(root / "nocaps/nocaps_val_4500_captions.json", {"images": images, "annotations": captions})
    for row in images:
        image(root / "nocaps/val" / row["file_name"], row["id"])


def vqa_rows(split: str, first: int, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    questions, annotations = [], []
    for n in range(first, first + count):
        identity = {"question_id": 10 * n, "image_id": n}
        questions.append({**identity, "question": f"What is the {WORDS[n % 8]} thing?"})
        answers = [{"answer": WORDS[(n + i // 6) % 8], "answer_confidence": "yes", "answer_id": i} for i in range(10)]
        kinds = {"question_type": "what is", "answer_type": ("other", "number")[n % 2]}
        annotations.append({**identity, **kinds, "multiple_choice_answer": "", "answers": answers})
    return {"questions": questions, "data_subtype": split}, {"annotations": annotations, "data_subtype": split}


def _vqa(root: Path, task: str, prefix: str) -> None:
    for split, first, count in (("val2014", 1, COUNT), ("train2014", 50, 4)):
        questions, annotations = vqa_rows(split, first, count)
        dump(root / task / f"{prefix}OpenEnded_mscoco_{split}_questions.json", questions)
        dump(root / task / f"{prefix}mscoco_{split}_annotations.json", annotations)
        for n in range(first, first + count):
            image(root / f"coco/{split}/COCO_{split}_{n:012d}.jpg", n)


def _vizwiz(root: Path) -> None:
    for split, count in (("val", COUNT), ("train", 4)):
        rows = []
        for n in range(count):
            name = f"VizWiz_{split}_{n:08d}.jpg"
            answers = [{"answer": WORDS[n], "answer_confidence": "yes"}] * 10
            rows.append(
                {
                    "image": name,
                    "question": "What is this?",
                    "answers": answers,
                    "answer_type": "other",
                    "answerable": 1,
                }
            )
            image(root / "vizwiz" / split / name, n)
        dump(root / f"vizwiz/{split}.json", rows)


def _visdial(root: Path) -> None:
    questions = [f"is it {word}" for word in WORDS]
    answers = [f"it is {word} {i}" for i in range(15) for word in WORDS]
    dialogs, dense = [], []
    for n in (1, 2):
        rounds = [
            {"question": (n + i) % 8, "answer": 3 * i + n, "answer_options": list(range(n, n + 100)), "gt_index": 3 * i}
            for i in range(2)
        ]
        dialogs.append({"image_id": n, "caption": "", "dialog": rounds})
        dense.append({"image_id": n, "round_id": 2, "gt_relevance": [float(i % 7 == 0) for i in range(100)]})
        image(root / f"visdial/VisualDialog_val2018/VisualDialog_val2018_{n:012d}.jpg", n)
    data = {"questions": questions, "answers": answers, "dialogs": dialogs}
    dump(root / "visdial/visdial_1.0_val.json", {"version": "1.0", "split": "val2018", "data": data})
    dump(root / "visdial/visdial_1.0_val_dense_annotations.json", dense)


def _mmvet(root: Path) -> None:
    rows = {}
    for n in range(COUNT):
        image(root / f"mmvet/images/v1_{n}.png", n)
        capability = ["ocr", "math"][: n % 2 + 1]
        rows[f"v1_{n}"] = {
            "imagename": f"v1_{n}.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": capability,
        }  # fmt: skip
    dump(root / "mmvet/mm-vet.json", rows)


def _video_qa(root: Path, task: str, folder: str, name: Callable[[int], str]) -> None:
    for split, first in (("test", 1), ("train", 10)):
        rows = [
            {"id": n, "video_id": n, "question": "what is on the table?", "answer": WORDS[n % 8], "category_id": 1}
            for n in range(first, first + COUNT)
        ]
        dump(root / f"{task}/{split}_qa.json", rows)
        for row in rows:
            video(root / task / folder / name(row["video_id"]), row["id"])
    lines = [f"clip_{n} vid{n}" for n in range(1, 20)]
    (root / task / "youtube_mapping.txt").write_text("\n".join(lines))


def _nextqa(root: Path) -> None:
    kinds = ("CW", "TN", "DC", "DL")
    lines = ["video,frame_count,width,height,question,answer,qid,type"]
    for n in range(1, 4):
        video(root / f"nextqa/videos/1/{n}.mp4", n)
        lines += [f"{n},10,32,32,what is there,{WORDS[n + q]} {WORDS[q]},{q},{kinds[q]}" for q in range(2 + n % 3)]
    for split in ("test", "train"):
        (root / f"nextqa/{split}.csv").write_text("\n".join(lines) + "\n")
    dump(root / "nextqa/map_vid_vidorID.json", {str(n): f"1/{n}" for n in range(1, 4)})
    dump(root / "nextqa/add_reference_answer_test.json", {"1": {"0": "red dog"}})


def _coco_captions(root: Path, task: str) -> None:
    images = [{"id": n, "file_name": f"COCO_val2014_{n:012d}.jpg"} for n in range(1, COUNT + 1)]
    captions = [
        {"id": 10 * n + i, "image_id": n, "caption": caption(10 * n + i)} for n in range(1, 4) for i in range(2)
    ]
    dump(root / task / "captions_val2014.json", {"images": images, "annotations": captions})
    for row in images:
        image(root / "coco/val2014" / row["file_name"], row["id"])


def _geneval(root: Path) -> None:
    lines = [json.dumps({"tag": "single_object", "prompt": f"a photo of a {word}"}) for word in WORDS[:2]]
    (root / "geneval").mkdir(parents=True)
    (root / "geneval/evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")


def _dpg(root: Path) -> None:
    (root / "dpg/prompts").mkdir(parents=True)
    for n, word in enumerate(WORDS[:2]):
        (root / f"dpg/prompts/{n}.txt").write_text(f"A long text about a {word}.\n")


_WRITERS = {
    "coco_karpathy": lambda root: _karpathy(root, "coco_karpathy", "dataset_coco.json", "coco/val2014"),
    "flickr30k": lambda root: _karpathy(root, "flickr30k", "dataset_flickr30k.json", "flickr30k/flickr30k-images"),
    "nocaps": _nocaps,
    "vqav2": lambda root: _vqa(root, "vqav2", "v2_"),
    "okvqa": lambda root: _vqa(root, "okvqa", ""),
    "vizwiz": _vizwiz,
    "visdial": _visdial,
    "mmvet": _mmvet,
    "msvd_qa": lambda root: _video_qa(root, "msvd_qa", "YouTubeClips", lambda n: f"clip_{n}.avi"),
    "msrvtt_qa": lambda root: _video_qa(root, "msrvtt_qa", "videos", lambda n: f"video{n}.mp4"),
    "nextqa": _nextqa,
    "coco_fid": lambda root: _coco_captions(root, "coco_fid"),
    "clip_score": lambda root: _coco_captions(root, "clip_score"),
    "autoencoding": lambda root: _coco_captions(root, "autoencoding"),
    "geneval": _geneval,
    "dpg": _dpg,
}
