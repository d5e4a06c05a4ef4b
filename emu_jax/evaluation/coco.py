"""Read annotations in COCO's layouts: Karpathy's splits, caption files, and VQA question and annotation files."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from emu_jax.errors import UserError
from emu_jax.evaluation.data_root import DataRoot
from emu_jax.evaluation.example import Example

_KARPATHY_TRAIN = ("train", "restval")
_GROUPS = ("answer_type", "question_type")


def karpathy_examples(data: DataRoot, split: str, *, dataset: str, images: tuple[str, ...]) -> list[Example]:
    """Return the images of a Karpathy split with their captions.

    Args:
      dataset: `coco` or `flickr30k`; the file is dataset_NAME.json.
      images: folders that may hold the images.

    Raises:
      UserError: the file is that of another dataset.
    """
    file = f"dataset_{dataset}.json"
    parts = _KARPATHY_TRAIN if split == "train" else (split,)

    def parse(value: Any) -> list[Example]:
        if value.get("dataset", dataset) != dataset:
            raise UserError(f"{data.file(file)} belongs to the dataset {value['dataset']}, not to {dataset}.")
        return [
            Example(
                key=(int(image["cocoid"]) if "cocoid" in image else _number(image["filename"]),),
                media=(folders[image.get("filepath", "")] / image["filename"],),
                references=tuple(sentence["raw"] for sentence in image["sentences"]),
            )
            for image in value["images"]
            if image["split"] in parts
        ]

    folders = _Folders(data, images)
    return data.parse(file, parse)


def vqa_examples(data: DataRoot, *, questions: str, annotations: str | None, subset: str) -> list[Example]:
    """Return the questions of a VQA file, with people's answers if there is an annotation file.

    Args:
      subset: "val2014", "test-dev2015", ...; names the folder of the images.

    Raises:
      UserError: the annotations belong to another split.
    """
    images = subset.replace("-dev", "")
    folder = data.folder(f"coco/{images}", images)
    answers = {} if annotations is None else data.parse(annotations, _by_question)

    def parse(value: Any) -> list[Example]:
        examples = []
        for row in value["questions"]:
            truth = answers.get(row["question_id"])
            if truth is None and annotations is not None:
                raise UserError(
                    f"{data.file(annotations)} has no answers for question {row['question_id']} of {questions}: it is "
                    "the annotation file of another split, or it is incomplete."
                )
            name = f"COCO_{images}_{int(row['image_id']):012d}.jpg"
            examples.append(
                Example(
                    key=(row["question_id"],),
                    media=(folder / name,),
                    text=row["question"],
                    references=() if truth is None else tuple(one["answer"] for one in truth["answers"]),
                    details={name: truth[name] for name in _GROUPS} if truth else {},
                )
            )
        return examples

    for file in (questions, annotations):
        if file is not None:
            _check_subset(data, file, subset)
    return data.parse(questions, parse)


def _check_subset(data: DataRoot, file: str, expected: str) -> None:
    """Raise UserError if a VQA file says that it belongs to another subset than `expected`."""
    found = data.json(file)
    subset = found.get("data_subtype") if isinstance(found, dict) else None
    if subset and subset != expected:
        raise UserError(f"{data.file(file)} belongs to the split {subset}, not to {expected}.")


def caption_file_examples(
    data: DataRoot, *, file: str, images: tuple[str, ...], details: tuple[str, ...]
) -> list[Example]:
    """Return the images of a COCO caption file (`images` and `annotations`), `details` being fields of an image."""
    folder = data.folder(*images)

    def parse(value: Any) -> list[Example]:
        captions: dict[int, list[str]] = defaultdict(list)
        for row in value.get("annotations", ()):
            captions[row["image_id"]].append(row["caption"])
        return [
            Example(
                key=(image["id"],),
                media=(folder / image["file_name"],),
                references=tuple(captions[image["id"]]),
                details={name: image[name] for name in details},
            )
            for image in value["images"]
        ]

    return data.parse(file, parse)


class _Folders(dict[str, Any]):
    """The folder of each `filepath` of a Karpathy file, looked up once."""

    def __init__(self, data: DataRoot, images: tuple[str, ...]) -> None:
        super().__init__()
        self._data, self._images = data, images

    def __missing__(self, name: str) -> Any:
        self[name] = self._data.folder(*(f"{folder}/{name}".strip("/") for folder in self._images))
        return self[name]


def _by_question(value: Any) -> Mapping[int, Mapping[str, Any]]:
    return {row["question_id"]: row for row in value["annotations"]}


def _number(filename: str) -> int:
    return int(filename.partition(".")[0])
