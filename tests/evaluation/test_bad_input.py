"""Bad benchmark files are one clear line, before the work."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from emu_jax.cli import evaluate as command
from emu_jax.errors import UserError
from emu_jax.evaluation.api import evaluate
from emu_jax.evaluation.catalog import find_task
from emu_jax.evaluation.image_metrics.networks import ImageNetworks
from emu_jax.evaluation.scoring import Selection, read_examples
from emu_jax.evaluation.task import ScoreOptions
from tests.evaluation.layouts import write_layout


def replace(path, old, new):
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("task", "file", "old", "new", "line"),
    [
        ("vqav2", "v2_mscoco_val2014_annotations.json", "val2014", "train2014", "belongs to the split train2014, not"),
        ("okvqa", "OpenEnded_mscoco_val2014_questions.json", "val2014", "train2014", "belongs to the split train2014"),
        ("vizwiz", "val.json", "VizWiz_val", "VizWiz_test", "belongs to the split test, not to val"),
        ("visdial", "visdial_1.0_val.json", "val2018", "test2018", "belongs to the split test2018, not to val2018"),
        ("coco_karpathy", "dataset_coco.json", '"coco"', '"flickr8k"', "belongs to the dataset flickr8k, not to coco"),
        ("coco_karpathy", "dataset_coco.json", '"test"', '"train"', "has no examples of the split test"),
        ("coco_fid", "captions_val2014.json", "val2014", "train2014", "the captions of train2014, not of val2014"),
        ("nocaps", "nocaps_val_4500_captions.json", "domain", "dom", "does not have the published layout of nocaps"),
        ("mmvet", "mm-vet.json", "imagename", "image", "does not have the published layout of mmvet"),
        ("msvd_qa", "youtube_mapping.txt", "vid1\n", "vid99\n", "has no line for vid1"),
        ("nextqa", "test.csv", "question,", "query,", "has no columns video, question"),
        ("geneval", "evaluation_metadata.jsonl", "prompt", "text", "line 1 is not an object with a prompt"),
    ],
)
def test_files_of_another_split_or_layout(task, file, old, new, line, tmp_path):
    root = write_layout(task, tmp_path)
    replace(root / task / file, old, new)
    with pytest.raises(UserError, match=line) as caught:
        read_examples(find_task(task), root, Selection())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", ["geneval", "dpg"])
def test_no_prompts(task, tmp_path):
    root = write_layout(task, tmp_path)
    for path in (root / task).rglob("*"):
        if path.is_file():
            path.unlink() if path.suffix == ".txt" else path.write_text("")
    with pytest.raises(UserError, match="has no examples of the split test"):
        read_examples(find_task(task), root, Selection())


def test_a_broken_video_is_named_and_counted(tiny, tmp_path):
    root = write_layout("msvd_qa", tmp_path / "data")
    broken = root / "msvd_qa/YouTubeClips/clip_2.avi"
    broken.write_bytes(broken.read_bytes()[:300])
    options = {"output": tmp_path / "out", "batch_size": 1}
    with pytest.raises(UserError, match=r"msvd_qa 2 cannot be read: .*--max-missing") as caught:
        evaluate(tiny, "msvd_qa", root, **options)
    assert "\n" not in str(caught.value)
    summary = evaluate(tiny, "msvd_qa", root, max_missing=1, **options).summary()
    assert (summary["num_examples"], summary["num_missing"]) == (2, 1)
    assert list(summary["missing"]) == ["2"]


def test_real_images_that_are_missing_are_reported_before_the_work(tiny, tmp_path):
    root = write_layout("coco_fid", tmp_path / "data")
    next((root / "coco/val2014").iterdir()).unlink()
    options = ScoreOptions(networks=ImageNetworks(clip=tmp_path))
    tiny_with_decoder = type("Tiny", (), {"has_visual_decoder": True})()
    with pytest.raises(UserError, match=r"1 of 3 real images are missing, such as .*--fid-reference"):
        evaluate(tiny_with_decoder, "coco_fid", root, options=options)


def test_given_images_that_are_missing_or_broken(tmp_path, clip):
    root = write_layout("clip_score", tmp_path / "data")
    rows = [{"image_id": n, "file": f"{n}.png"} for n in (1, 2, 3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--predictions", str(tmp_path / "p.jsonl"), "--task", "clip_score", "--data", str(root)]
    words += ["--output", str(tmp_path / "out"), "--clip", str(clip)]
    with pytest.raises(UserError, match="3 of 3 generated images are missing, such as"):
        command.main(words)
    for n in (1, 2, 3):
        (tmp_path / f"{n}.png").write_bytes(b"not a PNG")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/") + r"\d\.png: "):
        command.main(words)


def test_features_of_another_form(tmp_path):
    np.savez(tmp_path / "features.npz", first=np.zeros((3, 2)))
    words = ["--predictions", str(tmp_path / "features.npz"), "--task", "frechet_distance"]
    with pytest.raises(UserError, match="does not hold arrays `real` and `generated`"):
        command.main([*words, "--output", str(tmp_path)])
