"""Benchmarks with questions about images, and COCO captions, in their official layouts."""

import json
import shutil

import pytest

from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.data.prepare.cleaning import PrepareConfig
from emu_jax.data.prepare.job import prepare
from emu_jax.data.sources import Rejected
from emu_jax.errors import UserError
from tests.data.sources.makers import COUNT, MAKERS, image_file, kinds, make_coco_captions, numbers, read, write_json

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
ANSWERS = ("red",) * 6 + ("pink",) * 4


def test_prepared_questions_have_all_ten_answers(cases, tmp_path):
    prepare([cases / "vqa_layout" / QUESTIONS], tmp_path / "out", config=PrepareConfig("vqav2", image_size=32))
    documents = PreparedSet(tmp_path / "out")
    assert len(documents) == 4
    assert documents[0].references == ANSWERS
    assert documents[0].segments[-1].text == "red"
    assert all(len(documents[i].references) == 10 for i in range(4))


@pytest.mark.parametrize("subtype_in", ["questions", "annotations", "both", "neither"])
@pytest.mark.parametrize("names", [(QUESTIONS, ANNOTATIONS), ("questions.json", "annotations.json")])
@pytest.mark.parametrize("folder", ["val2014", "images", "images/val2014", "."])
def test_file_names_and_data_subtype(cases, tmp_path, names, subtype_in, folder):
    case = cases / "vqa_layout"
    for old, new, kind in zip((QUESTIONS, ANNOTATIONS), names, ("questions", "annotations"), strict=True):
        value = json.loads((case / old).read_text())
        value.pop("data_subtype", None)
        if subtype_in in (kind, "both"):
            value["data_subtype"] = "val2014"
        write_json(tmp_path / new, value)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for image in (case / "val2014").iterdir():
        shutil.copy(image, tmp_path / folder)
    found = read("vqav2", tmp_path / names[0])
    if subtype_in == "neither" and names[0] == "questions.json":
        assert {f.reason for f in found} == {"a media file is missing"}
    else:
        assert [kinds(f)[0] for f in found] == ["Image"] * 4
        assert {f.references for f in found[:1]} == {ANSWERS}


@pytest.mark.parametrize("prefix", ["", "val2014/", "./"])
def test_images_under_media(cases, tmp_path, prefix):
    case = cases / "vqa_layout"
    for name in (QUESTIONS, ANNOTATIONS):
        shutil.copy(case / name, tmp_path)
    media = tmp_path / "elsewhere" / prefix
    media.mkdir(parents=True)
    for image in (case / "val2014").iterdir():
        shutil.copy(image, media)
    found = read("vqav2", tmp_path / QUESTIONS, media=tmp_path / "elsewhere")
    assert [kinds(f)[0] for f in found] == ["Image"] * 4


def test_files_without_annotations(cases, tmp_path):
    shutil.copy(cases / "vqa_layout" / QUESTIONS, tmp_path)
    with pytest.raises(UserError, match=r"requires a \.\.\.questions\.json with its \.\.\.annotations\.json"):
        read("vqav2", tmp_path / QUESTIONS)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a.pop("question_id"), "the question has no annotation"),
        (lambda a: a.update(image_id=3), "question and annotation belong to different images"),
        (lambda a: a.update(answers=None), "the field 'answers' is NoneType"),
        (lambda a: a.update(answers=["red"]), "a JSON object was expected"),
        (lambda a: a.update(answers=[{"answer": " "}]), "there is no answer"),
        (lambda a: a.update(question_id=10000), "the question has no annotation"),
    ],
)
def test_a_broken_annotation_costs_its_question(cases, tmp_path, change, reason):
    shutil.copytree(cases / "vqa_layout", tmp_path / "v")
    value = json.loads((tmp_path / "v" / ANNOTATIONS).read_text())
    change(value["annotations"][0])
    write_json(tmp_path / "v" / ANNOTATIONS, value)
    found = read("vqav2", tmp_path / "v" / QUESTIONS)
    assert found[0].reason == reason
    assert [isinstance(f, Rejected) for f in found[2:]] == [False, False]


def test_two_annotations_of_one_question_are_ambiguous(cases, tmp_path):
    shutil.copytree(cases / "vqa_layout", tmp_path / "v")
    value = json.loads((tmp_path / "v" / ANNOTATIONS).read_text())
    value["annotations"].append(value["annotations"][0])
    write_json(tmp_path / "v" / ANNOTATIONS, value)
    assert read("vqav2", tmp_path / "v" / QUESTIONS)[0].reason == "the question has several annotations"


@pytest.mark.parametrize("source", ["coco_captions", "coco_karpathy"])
def test_official_coco_captions(tmp_path, source):
    found = read(source, make_coco_captions(tmp_path))
    assert [numbers(f) for f in found] == [({n}, {n}) for n in range(COUNT)]


@pytest.mark.parametrize("folder", ["train2014", "images", "../train2014", "../images/train2014"])
def test_folders_of_coco_images(tmp_path, folder):
    path = make_coco_captions(tmp_path)
    images = sorted((tmp_path / "train2014").iterdir())
    target = path.parent / folder
    target.mkdir(parents=True, exist_ok=True)
    for image in images:
        image.rename(target / image.name)
    assert len([f for f in read("coco_captions", path) if not isinstance(f, Rejected)]) == COUNT


def test_broken_coco_captions(tmp_path):
    path = make_coco_captions(tmp_path)
    value = json.loads(path.read_text())
    value["annotations"][0]["caption"] = " "
    value["annotations"][1]["image_id"] = 5
    value["annotations"][2]["image_id"] = "5"
    value["images"][3]["file_name"] = None
    write_json(path, value)
    found = read("coco_captions", path)
    assert [f.reason if isinstance(f, Rejected) else "" for f in found] == [
        "the text is empty",
        "the image of the caption is not in the file",
        "the field 'image_id' is str",
        "the image of the caption is not in the file",
        "",
        "",
    ]


@pytest.mark.parametrize("source", ["vizwiz", "visdial", "okvqa"])
def test_references(tmp_path, source):
    found = read(source, MAKERS[source](tmp_path))
    assert {f.references for f in found} == {
        "vizwiz": {("yes",)}, "visdial": {()}, "okvqa": {("no", "yes", "yes")}
    }[source]  # fmt: skip
    assert image_file(0) == found[0].segments[0].data
