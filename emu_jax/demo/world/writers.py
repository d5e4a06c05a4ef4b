"""Write the synthetic world, each set in the layout of the real one: one function per layout, one call per shard.

Every writer takes the shard's own generator, so a shard does not depend on which other shards this run has written. The
file that identifies a shard (tar, jsonl, csv or json) is written last and atomically; a resumed run writes the images
and videos of an unfinished shard again.
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

from emu_jax.demo.world.media import add_sample, encode_jpeg, encode_mp4, encode_png
from emu_jax.demo.world.motion import clip_caption, clip_question, render_clip, sample_clip
from emu_jax.demo.world.questions import conversation
from emu_jax.demo.world.rendering import render
from emu_jax.demo.world.scenes import Scene, choose, sample_scene
from emu_jax.demo.world.stories import Storyboard, sample_page
from emu_jax.io.files import atomic_file, file_errors, write_bytes

SITE = "https://drawn.example"
CLIP_FRAMES, CLIP_FPS = 8, 4
_DEAD_LINKS = 0.01  # fraction of links that failed: a row in the parquet, no sample in the tar
_ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


_SIDES = ("width", "height", "original_width", "original_height")
_PAIR_SCHEMA = pyarrow.schema(
    [
        *((name, pyarrow.string()) for name in ("url", "caption", "key", "status", "error_message")),
        *((name, pyarrow.int32()) for name in _SIDES),
        *((name, pyarrow.string()) for name in ("exif", "sha256")),
    ]
)


def _json(value: Any, *, indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent).encode()


def _write_media(path: Path, data: bytes) -> None:
    with file_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def write_pairs(
    directory: Path,
    rng: np.random.Generator,
    *,
    shard: int,
    count: int,
    image_size: int,
    describe: Callable[[Scene, np.random.Generator], str],
) -> None:
    """Write image-text pairs in the webdataset layout of img2dataset.

    SHARD.tar holds KEY.jpg, KEY.json and KEY.txt; SHARD.parquet has a row per link, including dead ones;
    SHARD_stats.json has the counts. KEY is the shard in five digits and the row in four.
    """
    rows: list[dict[str, Any]] = []
    successes = 0
    with atomic_file(directory / f"{shard:05d}.tar") as file, tarfile.open(file, "w") as archive:
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
            if rng.random() < _DEAD_LINKS:
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
        dead = len(rows) - count
        stats = {
            "count": len(rows),
            "successes": count,
            "failed_to_download": dead,
            "failed_to_resize": 0,
            "duration": 0.0,
            "status_dict": {"success": count} | ({"HTTP Error 404: Not Found": dead} if dead else {}),
        }
        write_bytes(directory / f"{shard:05d}_stats.json", _json(stats, indent=4))


def write_pages(directory: Path, rng: np.random.Generator, *, shard: int, count: int, image_size: int) -> None:
    """Write web pages in the layout of MMC4: docs_shard_SHARD_v3.jsonl, and images/NAME.jpg as named there."""
    lines = []
    for index in range(count):
        page = sample_page(rng)
        similarity = rng.uniform(0.10, 0.17, (len(page.images), len(page.sentences)))
        infos = []
        for number, image in enumerate(page.images):
            name = hashlib.sha1(f"{shard} {index} {number}".encode()).hexdigest()[:12] + ".jpg"
            _write_media(directory / "images" / name, encode_jpeg(render(image.scene, rng, size=image_size)))
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
    """Write stock footage in the layout of WebVid.

    results_10M_train_SHARD.csv has videoid, contentUrl, duration, page_dir and name; the videos are
    videos/PAGE_DIR/VIDEOID.mp4. Videos are twice as large as images because yuv420p halves the resolution of color.
    """
    text = io.StringIO(newline="")
    rows = csv.DictWriter(text, ["videoid", "contentUrl", "duration", "page_dir", "name"], lineterminator="\n")
    rows.writeheader()
    for index in range(count):
        clip = sample_clip(rng)
        video_id = 1_000_000 + shard * 10_000 + index
        page_dir = f"{video_id // 50 * 50 + 1:09d}_{video_id // 50 * 50 + 50:09d}"
        frames = render_clip(clip, rng, size=2 * image_size, num_frames=CLIP_FRAMES)
        _write_media(directory / "videos" / page_dir / f"{video_id}.mp4", encode_mp4(frames, fps=CLIP_FPS))
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
    sample: Callable[[np.random.Generator], Storyboard],
) -> None:
    """Write storyboards in the layout of Emu's tool for YT-Storyboard-1B.

    SHARD.tar holds VIDEO.0.txt, VIDEO.0.png, VIDEO.1.txt, ... and VIDEO.final_meta.json. Text i is the speech between
    frame i - 1 and frame i, so it precedes frame i. It may be empty; a text after the last frame has no frame.
    """
    interval = 2
    with atomic_file(directory / f"{shard:07d}.tar") as file, tarfile.open(file, "w") as archive:
        for _ in range(count):
            story = sample(rng)
            parts = {}
            for index, (scene, text) in enumerate(zip(story.frames, story.subtitles, strict=True)):
                parts[f"{index}.txt"] = text.encode()
                parts[f"{index}.png"] = encode_png(render(scene, rng, size=image_size))
            if story.closing:
                parts[f"{len(story.frames)}.txt"] = story.closing.encode()
            video_id = "".join(choose(rng, _ID_LETTERS) for _ in range(11))
            texts = [*story.subtitles, story.closing]
            meta = {
                "id": video_id,
                "sb": {"0": [image_size, image_size, len(story.frames), 1, len(story.frames)]},
                "subtitle": [
                    {"text": text, "start": max(0.0, interval * i - 0.5), "duration": 1.0}
                    for i, text in enumerate(texts)
                    if text
                ],
                "duration": interval * len(story.frames),
                "frame_num": len(story.frames),
            }
            add_sample(archive, video_id, parts | {"final_meta.json": _json(meta)})


def write_chats(directory: Path, rng: np.random.Generator, *, shard: int, count: int, image_size: int) -> None:
    """Write chats about images in the layout of LLaVA: json of id, image and conversations; images/IMAGE."""
    chats = []
    for index in range(count):
        scene = sample_scene(rng)
        key = f"{shard * 100_000 + index:012d}"
        _write_media(directory / "images" / f"{key}.jpg", encode_jpeg(render(scene, rng, size=image_size)))
        turns: list[dict[str, str]] = []
        for question, answer in conversation(scene, rng):
            if not turns:
                question = choose(rng, ("<image>\n{}", "{}\n<image>")).format(question)
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        chats.append({"id": key, "image": f"{key}.jpg", "conversations": turns})
    write_bytes(directory / f"llava_instruct_{shard}.json", _json(chats, indent=2))


def write_video_chats(directory: Path, rng: np.random.Generator, *, shard: int, count: int, image_size: int) -> None:
    """Write questions about videos in the layout of VideoChat: json of video and QA (i, q, a); videos/VIDEO."""
    chats = []
    for index in range(count):
        clip = sample_clip(rng)
        name = f"{shard * 100_000 + index:08d}.mp4"
        frames = render_clip(clip, rng, size=2 * image_size, num_frames=CLIP_FRAMES)
        _write_media(directory / "videos" / name, encode_mp4(frames, fps=CLIP_FPS))
        item = clip_question(clip, rng)
        chats.append({"video": name, "QA": [{"i": "", "q": item.question, "a": item.answer}]})
    write_bytes(directory / f"videochat_instruct_{shard}.json", _json(chats, indent=2))
