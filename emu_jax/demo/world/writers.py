"""The drawn world on disk, each set in the layout of the real one. One function per layout, one call per shard.

Every writer takes the shard's own generator, so that a shard is the same whether or not those before it were written in
this run. The file by which a reader finds a shard (the tar, the jsonl, the csv, the json) is written last.
"""

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from emu_jax.demo.world.files import add_sample, atomic, encode_jpeg, encode_mp4, encode_png, write_bytes
from emu_jax.demo.world.motion import clip_caption, clip_question, render_clip, sample_clip
from emu_jax.demo.world.questions import conversation
from emu_jax.demo.world.rendering import render
from emu_jax.demo.world.scenes import Scene, choose, sample_scene
from emu_jax.demo.world.stories import Storyboard, sample_page

SITE = "https://drawn.example"
CLIP_FRAMES, CLIP_FPS = 8, 4
_LOST = 0.01  # links are dead now and then: a row in the parquet, nothing in the tar
_ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


_SIDES = ("width", "height", "original_width", "original_height")
_PAIR_SCHEMA = pyarrow.schema(
    [
        *((name, pyarrow.string()) for name in ("url", "caption", "key", "status", "error_message")),
        *((name, pyarrow.int32()) for name in _SIDES),
        *((name, pyarrow.string()) for name in ("exif", "sha256")),
    ]
)


def _json(value, *, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent).encode()


def write_pairs(
    directory: Path,
    rng: np.random.Generator,
    *,
    shard: int,
    count: int,
    image_size: int,
    describe: Callable[[Scene, np.random.Generator], str],
) -> None:
    """Image-text pairs as img2dataset's webdataset output: SHARD.tar of KEY.jpg, KEY.json, KEY.txt; SHARD.parquet with
    a row per link, lost ones too; SHARD_stats.json. KEY is the shard's five digits and the row's four."""
    rows: list[dict[str, Any]] = []
    successes = 0
    with atomic(directory / f"{shard:05d}.tar") as file, tarfile.open(fileobj=file, mode="w") as archive:
        while successes < count:
            scene = sample_scene(rng)
            key = f"{shard:05d}{len(rows):04d}"
            row: dict[str, Any] = dict.fromkeys(_PAIR_SCHEMA.names) | {
                "url": f"{SITE}/{directory.name}/{key}.jpg",
                "caption": describe(scene, rng),
                "key": key,
                "status": "failed_to_download",
                "error_message": "HTTP Error 404: Not Found",
            }
            rows.append(row)
            if rng.random() < _LOST:
                continue
            jpeg = encode_jpeg(render(scene, rng, size=image_size))
            row |= dict.fromkeys(_SIDES, image_size)
            row |= {"status": "success", "error_message": None, "exif": "{}"}
            row["sha256"] = hashlib.sha256(jpeg).hexdigest()
            successes += 1
            add_sample(archive, key, {"jpg": jpeg, "txt": row["caption"].encode(), "json": _json(row, indent=4)})
        table = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_PAIR_SCHEMA), table)
        write_bytes(directory / f"{shard:05d}.parquet", table.getvalue())
        lost = len(rows) - count
        stats = {
            "count": len(rows),
            "successes": count,
            "failed_to_download": lost,
            "failed_to_resize": 0,
            "duration": 0.0,
            "status_dict": {"success": count} | ({"HTTP Error 404: Not Found": lost} if lost else {}),
        }
        write_bytes(directory / f"{shard:05d}_stats.json", _json(stats, indent=4))


def write_pages(directory: Path, rng: np.random.Generator, *, shard: int, count: int, image_size: int) -> None:
    """Web pages as MMC4: docs_shard_SHARD_v3.jsonl, and images/NAME.jpg under the names that it gives."""
    lines = []
    for index in range(count):
        page = sample_page(rng)
        similarity = rng.uniform(0.10, 0.17, (len(page.images), len(page.sentences)))
        infos = []
        for number, image in enumerate(page.images):
            name = hashlib.sha1(f"{shard} {index} {number}".encode()).hexdigest()[:12] + ".jpg"
            write_bytes(directory / "images" / name, encode_jpeg(render(image.scene, rng, size=image_size)))
            similarity[number, image.sentence] = image.similarity
            infos.append(
                {
                    "image_name": name,
                    "raw_url": f"{SITE}/pages/{shard}/{index}/{number}.jpg",
                    "matched_text_index": image.sentence,
                    "matched_sim": image.similarity,
                    "face_detections": None,
                }
            )
        document = {
            "url": f"{SITE}/pages/{shard}/{index}.html",
            "text_list": list(page.sentences),
            "image_info": infos,
            "similarity_matrix": similarity.tolist(),
            "could_have_url_duplicate": 0,
        }
        lines.append(_json(document) + b"\n")
    write_bytes(directory / f"docs_shard_{shard}_v3.jsonl", b"".join(lines))


def write_clips(directory: Path, rng: np.random.Generator, *, shard: int, count: int, image_size: int) -> None:
    """Stock footage as WebVid: results_10M_train_SHARD.csv (videoid, contentUrl, duration, page_dir, name), and
    videos/PAGE_DIR/VIDEOID.mp4. Films are twice as large as pictures, as their colours lie at half resolution."""
    text = io.StringIO(newline="")
    rows = csv.DictWriter(text, ["videoid", "contentUrl", "duration", "page_dir", "name"], lineterminator="\n")
    rows.writeheader()
    for index in range(count):
        clip = sample_clip(rng)
        video_id = 1_000_000 + shard * 10_000 + index
        page_dir = f"{video_id // 50 * 50 + 1:09d}_{video_id // 50 * 50 + 50:09d}"
        frames = render_clip(clip, rng, size=2 * image_size, num_frames=CLIP_FRAMES)
        write_bytes(directory / "videos" / page_dir / f"{video_id}.mp4", encode_mp4(frames, fps=CLIP_FPS))
        rows.writerow(
            {
                "videoid": video_id,
                "contentUrl": f"{SITE}/videos/{video_id}/preview/{video_id}.mp4",
                "duration": f"PT00H00M{CLIP_FRAMES // CLIP_FPS:02d}S",
                "page_dir": page_dir,
                "name": clip_caption(clip, rng),
            }
        )
    write_bytes(directory / f"results_10M_train_{shard}.csv", text.getvalue().encode())


def write_storyboards(
    directory: Path,
    rng: np.random.Generator,
    *,
    shard: int,
    count: int,
    image_size: int,
    tell: Callable[[np.random.Generator], Storyboard],
) -> None:
    """Storyboards as Emu's tool for YT-Storyboard-1B writes them: SHARD.tar of VIDEO.0.txt, VIDEO.0.png, VIDEO.1.txt,
    ... with VIDEO.final_meta.json. Text i is what was said since frame i - 1, so it comes before frame i; it may be
    empty, and a text after the last frame has no frame."""
    interval = 2
    with atomic(directory / f"{shard:07d}.tar") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for _ in range(count):
            story = tell(rng)
            parts = {}
            for index, (scene, text) in enumerate(zip(story.frames, story.subtitles, strict=True)):
                parts[f"{index}.txt"] = text.encode()
                parts[f"{index}.png"] = encode_png(render(scene, rng, size=image_size))
            if story.closing:
                parts[f"{len(story.frames)}.txt"] = story.closing.encode()
            video_id = "".join(choose(rng, _ID_LETTERS) for _ in range(11))
            said = [*story.subtitles, story.closing]
            meta = {
                "id": video_id,
                "sb": {"0": [image_size, image_size, len(story.frames), 1, len(story.frames)]},
                "subtitle": [
                    {"text": text, "start": max(0.0, interval * i - 0.5), "duration": 1.0}
                    for i, text in enumerate(said)
                    if text
                ],
                "duration": interval * len(story.frames),
                "frame_num": len(story.frames),
            }
            add_sample(archive, video_id, parts | {"final_meta.json": _json(meta)})


def write_chats(directory: Path, rng: np.random.Generator, *, shard: int, count: int, image_size: int) -> None:
    """Chats about pictures as LLaVA's json (id, image, conversations of human and gpt), and images/IMAGE."""
    chats = []
    for index in range(count):
        scene = sample_scene(rng)
        key = f"{shard * 100_000 + index:012d}"
        write_bytes(directory / "images" / f"{key}.jpg", encode_jpeg(render(scene, rng, size=image_size)))
        turns: list[dict[str, str]] = []
        for question, answer in conversation(scene, rng):
            if not turns:
                question = choose(rng, ("<image>\n{}", "{}\n<image>")).format(question)
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        chats.append({"id": key, "image": f"{key}.jpg", "conversations": turns})
    write_bytes(directory / f"llava_instruct_{shard}.json", _json(chats, indent=2))


def write_video_chats(directory: Path, rng: np.random.Generator, *, shard: int, count: int, image_size: int) -> None:
    """Questions about films as VideoChat's json (video, QA of i, q, a), and videos/VIDEO."""
    chats = []
    for index in range(count):
        clip = sample_clip(rng)
        name = f"{shard * 100_000 + index:08d}.mp4"
        frames = render_clip(clip, rng, size=2 * image_size, num_frames=CLIP_FRAMES)
        write_bytes(directory / "videos" / name, encode_mp4(frames, fps=CLIP_FPS))
        asked = clip_question(clip, rng)
        chats.append({"video": name, "QA": [{"i": "", "q": asked.question, "a": asked.answer}]})
    write_bytes(directory / f"videochat_instruct_{shard}.json", _json(chats, indent=2))
