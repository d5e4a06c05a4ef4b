"""Tasks whose answer is text: captions, questions, and which way a thing moves."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from emu_jax.data.images import preprocess
from emu_jax.data.video import pick_frames
from emu_jax.demo.examples import (
    Pictured,
    Sample,
    Settings,
    TaskResult,
    attribute_chances,
    by_attribute,
    by_split,
    count_scenes,
    pictured,
)
from emu_jax.demo.models import Reader
from emu_jax.demo.prompts import Prompt, question_prompt
from emu_jax.demo.scores import Scores, share
from emu_jax.demo.world.grammar import ATTRIBUTES, caption, is_right_caption, score_attributes
from emu_jax.demo.world.motion import (
    DIRECTIONS,
    clip_captions,
    clip_question,
    parse_direction,
    render_clip,
    sample_clip,
)
from emu_jax.demo.world.questions import Question, QuestionKind, questions
from emu_jax.demo.world.scenes import Scene, Split, sample_scene

_NUMBERS = {1: "", 2: "_two_objects", 3: "_three_objects"}
_ASKED = (QuestionKind.COLOR, QuestionKind.SHAPE, QuestionKind.PLACE, QuestionKind.COUNT)
_FILM_FRAMES, _FILM_SCALE = 8, 2  # films of the world are written so long and so much larger than pictures


def ask(emu: Reader, prompts: Sequence[Prompt], settings: Settings) -> list[str]:
    """What each prompt goes on with."""
    answers: list[str] = []
    for start in range(0, len(prompts), settings.batch_size):
        batch = prompts[start : start + settings.batch_size]
        options = {"num_beams": settings.num_beams, "max_new_tokens": settings.max_new_tokens}
        answers += emu.generate_text_batch(batch, **options)
    return [answer.strip() for answer in answers]


def captions(emu: Reader, settings: Settings) -> TaskResult:
    """Scenes of one object, and beside them of two and of three: exact captions, and each attribute."""
    scores: Scores = {}
    samples: dict[str, list[Sample]] = {}
    for number, suffix in _NUMBERS.items():
        rng = settings.rng(f"captions{suffix}")
        examples = pictured(rng, settings, count=settings.num_scenes, num_objects=number)
        scenes = [example.scene for example in examples]
        texts = ask(emu, [[example.image] for example in examples], settings)
        exact = [is_right_caption(text, scene) for text, scene in zip(texts, scenes, strict=True)]
        scores |= by_split(f"caption_exact{suffix}", exact, scenes, chance=1 / count_scenes(number))
        found = [score_attributes(text, scene) for text, scene in zip(texts, scenes, strict=True)]
        chances = attribute_chances() if number == 1 else _blind_attributes(scenes, rng)
        scores |= by_attribute(f"caption_attributes{suffix}", found, chances=chances)
        samples[f"captions{suffix}"] = [
            Sample((example.image,), "", text, caption(example.scene, rng), right)
            for example, text, right in zip(examples[: settings.num_samples], texts, exact, strict=False)
        ]
    return TaskResult(scores, samples)


def _blind_attributes(scenes: Sequence[Scene], rng: np.random.Generator, *, guesses: int = 8) -> dict[str, float]:
    """What captions of other scenes of as many objects score: with several objects chance has no short formula."""
    found = [
        score_attributes(caption(sample_scene(rng, num_objects=len(scene.objects)), rng), scene)
        for scene in scenes
        for _ in range(guesses)
    ]
    return {kind: sum(row[kind] for row in found) / len(found) for kind in ATTRIBUTES}


def visual_questions(emu: Reader, settings: Settings) -> TaskResult:
    """One question a scene, kinds in turn. `vqa_accuracy` is of colour, shape and place; "how many" stands beside it.

    Chance is the best constant answer: the one most frequent among the answers to questions of its kind.
    """
    rng = settings.rng("questions")
    examples = pictured(rng, settings, count=settings.num_scenes)
    asked = [_one_question(example, _ASKED[i % len(_ASKED)], rng) for i, example in enumerate(examples)]
    prompts = [
        question_prompt([example.image], question.question, tokenizer=emu.tokenizer)
        for example, question in zip(examples, asked, strict=True)
    ]
    texts = ask(emu, prompts, settings)
    right = [question.is_right(text) for question, text in zip(asked, texts, strict=True)]
    chances = {
        kind: _best_constant([question.answer for question in asked if question.kind is kind])
        for kind in {question.kind for question in asked}
    }
    scored = [i for i, question in enumerate(asked) if question.kind is not QuestionKind.COUNT]
    chance = sum(chances[asked[i].kind] for i in scored) / len(scored)
    scores = by_split("vqa_accuracy", [right[i] for i in scored], [examples[i].scene for i in scored], chance=chance)
    for name, lone in (("vqa_accuracy_one_object", True), ("vqa_accuracy_several_objects", False)):
        hits = [right[i] for i in scored if (len(examples[i].scene.objects) == 1) == lone]
        if hits:
            scores[name] = share(hits, chance=chance)
    for kind, level in sorted(chances.items(), key=lambda item: _ASKED.index(item[0])):
        hits = [hit for hit, question in zip(right, asked, strict=True) if question.kind is kind]
        scores[f"vqa_accuracy_by_kind/{kind.value}"] = share(hits, chance=level)
    samples = [
        Sample((example.image,), question.question, text, question.answer, hit)
        for example, question, text, hit in zip(examples[: settings.num_samples], asked, texts, right, strict=False)
    ]
    return TaskResult(scores, {"questions": samples})


def _one_question(example: Pictured, kind: QuestionKind, rng: np.random.Generator) -> Question:
    return next(question for question in questions(example.scene, rng) if question.kind is kind)


def _best_constant(answers: Sequence[str]) -> float:
    return Counter(answers).most_common(1)[0][1] / len(answers)


def films(emu: Reader, settings: Settings) -> TaskResult:
    """The direction of motion: named in a description of the film, and (apart) in the answer to a question."""
    rng = settings.rng("films")
    clips = [sample_clip(rng, split=Split.TEST) for _ in range(settings.num_scenes)]
    shown = []
    for clip in clips:
        film = render_clip(clip, rng, size=_FILM_SCALE * settings.image_size, num_frames=_FILM_FRAMES)
        frames = pick_frames(list(film), count=settings.num_frames)
        shown.append(tuple(preprocess(frame, settings.image_size) for frame in frames))
    described = ask(emu, [list(frames) for frames in shown], settings)
    asked = [clip_question(clip, rng) for clip in clips]
    answers = ask(
        emu,
        [question_prompt(f, q.question, tokenizer=emu.tokenizer) for f, q in zip(shown, asked, strict=True)],
        settings,
    )
    named = [parse_direction(text) is clip.direction for text, clip in zip(described, clips, strict=True)]
    told = [question.is_right(text) for question, text in zip(asked, answers, strict=True)]
    chance = 1 / len(DIRECTIONS)
    scores = {
        "video_direction_accuracy": share(named, chance=chance),
        "video_direction_accuracy_by_question": share(told, chance=chance),
    }
    samples = [
        Sample(frames, "", text, clip_captions(clip)[0], right)
        for frames, text, clip, right in zip(shown[: settings.num_samples], described, clips, named, strict=False)
    ]
    return TaskResult(scores, {"films": samples})
