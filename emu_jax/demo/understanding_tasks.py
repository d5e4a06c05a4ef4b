"""Tasks whose answer is text: captions, questions, and the direction of motion in videos."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from emu_jax.data.images import preprocess
from emu_jax.data.video import pick_frames
from emu_jax.demo.answers import answer
from emu_jax.demo.examples import (
    RenderedScene,
    Sample,
    Settings,
    TaskResult,
    attribute_chances,
    by_attribute,
    by_split,
    count_scenes,
    sample_scenes,
)
from emu_jax.demo.models import EmuModel
from emu_jax.demo.prompts import question_prompt
from emu_jax.demo.scores import Scores, mean_score
from emu_jax.demo.world.grammar import ATTRIBUTES, caption, is_correct_caption, score_attributes
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

_SUFFIXES = {1: "", 2: "_two_objects", 3: "_three_objects"}
_KINDS = (QuestionKind.COLOR, QuestionKind.SHAPE, QuestionKind.LOCATION, QuestionKind.COUNT)
_VIDEO_FRAMES, _VIDEO_SCALE = 8, 2  # frames, and size relative to images, as in the written world


def captions(emu: EmuModel, settings: Settings) -> TaskResult:
    """Score captions of scenes of one, two and three objects: exact match, and each attribute."""
    scores: Scores = {}
    samples: dict[str, list[Sample]] = {}
    for number, suffix in _SUFFIXES.items():
        rng = settings.rng(f"captions{suffix}")
        examples = sample_scenes(rng, settings, count=settings.num_scenes, num_objects=number)
        scenes = [example.scene for example in examples]
        texts = answer(emu, [[example.image] for example in examples], settings)
        exact = [is_correct_caption(text, scene) for text, scene in zip(texts, scenes, strict=True)]
        scores |= by_split(f"caption_exact{suffix}", exact, scenes, chance=1 / count_scenes(number))
        found = [score_attributes(text, scene) for text, scene in zip(texts, scenes, strict=True)]
        chances = attribute_chances() if number == 1 else _random_attribute_scores(scenes, rng)
        scores |= by_attribute(f"caption_attributes{suffix}", found, chances=chances)
        samples[f"captions{suffix}"] = [
            Sample((example.image,), "", text, caption(example.scene, rng), correct)
            for example, text, correct in zip(examples[: settings.num_samples], texts, exact, strict=False)
        ]
    return TaskResult(scores, samples)


def _random_attribute_scores(
    scenes: Sequence[Scene], rng: np.random.Generator, *, guesses: int = 8
) -> dict[str, float]:
    """Estimate the chance of each attribute by captions of random scenes: several objects have no simple formula."""
    found = [
        score_attributes(caption(sample_scene(rng, num_objects=len(scene.objects)), rng), scene)
        for scene in scenes
        for _ in range(guesses)
    ]
    return {attribute: sum(row[attribute] for row in found) / len(found) for attribute in ATTRIBUTES}


def visual_questions(emu: EmuModel, settings: Settings) -> TaskResult:
    """Score one question per scene, the kinds in turn.

    `vqa_accuracy` covers questions about color, shape and location; questions about the count have their own score.
    Chance is the best constant answer: the most frequent one among the questions of a kind.
    """
    rng = settings.rng("questions")
    examples = sample_scenes(rng, settings, count=settings.num_scenes)
    asked = [_one_question(example, _KINDS[i % len(_KINDS)], rng) for i, example in enumerate(examples)]
    prompts = [
        question_prompt([example.image], question.question, tokenizer=emu.tokenizer)
        for example, question in zip(examples, asked, strict=True)
    ]
    texts = answer(emu, prompts, settings)
    correct = [question.is_correct(text) for question, text in zip(asked, texts, strict=True)]
    chances = {
        kind: _best_constant([question.answer for question in asked if question.kind is kind])
        for kind in {question.kind for question in asked}
    }
    scored = [i for i, question in enumerate(asked) if question.kind is not QuestionKind.COUNT]
    chance = sum(chances[asked[i].kind] for i in scored) / len(scored)
    scores = by_split("vqa_accuracy", [correct[i] for i in scored], [examples[i].scene for i in scored], chance=chance)
    for name, single in (("vqa_accuracy_one_object", True), ("vqa_accuracy_several_objects", False)):
        hits = [correct[i] for i in scored if (len(examples[i].scene.objects) == 1) == single]
        if hits:
            scores[name] = mean_score(hits, chance=chance)
    for kind, level in sorted(chances.items(), key=lambda item: _KINDS.index(item[0])):
        hits = [hit for hit, question in zip(correct, asked, strict=True) if question.kind is kind]
        scores[f"vqa_accuracy_by_kind/{kind.value}"] = mean_score(hits, chance=level)
    samples = [
        Sample((example.image,), question.question, text, question.answer, hit)
        for example, question, text, hit in zip(examples[: settings.num_samples], asked, texts, correct, strict=False)
    ]
    return TaskResult(scores, {"questions": samples})


def _one_question(example: RenderedScene, kind: QuestionKind, rng: np.random.Generator) -> Question:
    return next(question for question in questions(example.scene, rng) if question.kind is kind)


def _best_constant(answers: Sequence[str]) -> float:
    return Counter(answers).most_common(1)[0][1] / len(answers)


def videos(emu: EmuModel, settings: Settings) -> TaskResult:
    """Score the direction of motion in a description of the video, and separately in the answer to a question."""
    rng = settings.rng("videos")
    clips = [sample_clip(rng, split=Split.TEST) for _ in range(settings.num_scenes)]
    frames = []
    for clip in clips:
        video = render_clip(clip, rng, size=_VIDEO_SCALE * settings.image_size, num_frames=_VIDEO_FRAMES)
        picked = pick_frames(list(video), count=settings.num_frames)
        frames.append(tuple(preprocess(frame, settings.image_size) for frame in picked))
    descriptions = answer(emu, [list(images) for images in frames], settings)
    asked = [clip_question(clip, rng) for clip in clips]
    prompts = [
        question_prompt(images, question.question, tokenizer=emu.tokenizer)
        for images, question in zip(frames, asked, strict=True)
    ]
    texts = answer(emu, prompts, settings)
    described = [parse_direction(text) is clip.direction for text, clip in zip(descriptions, clips, strict=True)]
    answered = [question.is_correct(text) for question, text in zip(asked, texts, strict=True)]
    chance = 1 / len(DIRECTIONS)
    scores = {
        "video_direction_accuracy": mean_score(described, chance=chance),
        "video_direction_accuracy_by_question": mean_score(answered, chance=chance),
    }
    samples = [
        Sample(images, "", text, clip_captions(clip)[0], correct)
        for images, text, clip, correct in zip(
            frames[: settings.num_samples], descriptions, clips, described, strict=False
        )
    ]
    return TaskResult(scores, {"videos": samples})
