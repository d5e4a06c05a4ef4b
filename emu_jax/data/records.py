"""Convert documents to the records of a prepared set and back, without loss.

A record is a `tf.train.Example` with the features of `features()`, so `tfds.data_source` can read it. The loader
parses it directly, which is ten times faster. Segment i has type `kinds[i]` (0 text, 1 image, 2 video) and role
`roles[i]`. Texts and blobs follow in the order of the segments; a video has `frames` blobs (0 means one blob, the
encoded video). A blob with shape [0, 0, 0] is an encoded file; any other shape means raw uint8 pixels.
"""

import functools
import threading
from typing import Any

import numpy as np

from emu_jax.data.document import Document, Image, Layout, Role, Segment, Text, Video

_BYTES = ("key", "source", "layout", "texts", "blobs", "references")
_TEXT, _IMAGE, _VIDEO = 0, 1, 2
_ROLES = {None: -1, Role.SYSTEM: 0, Role.USER: 1, Role.ASSISTANT: 2, Role.REJECTED: 3}
_ROLE_OF = {number: role for role, number in _ROLES.items()}


def features() -> dict[str, Any]:
    """Return the TFDS features of a record."""
    import tensorflow_datasets as tfds  # slow to import, and needed only for writing

    integers = tfds.features.Sequence(tfds.features.Scalar(np.int32))
    return {
        "key": tfds.features.Text(),
        "source": tfds.features.Text(),
        "layout": tfds.features.Text(),
        "kinds": integers,
        "roles": integers,
        "frames": integers,
        "texts": tfds.features.Sequence(tfds.features.Text()),
        "references": tfds.features.Sequence(tfds.features.Text()),
        "blobs": tfds.features.Sequence(tfds.features.Text()),
        "shapes": tfds.features.Tensor(shape=(None, 3), dtype=np.int32),
    }


def to_example(document: Document) -> dict[str, Any]:
    """Return the document as values of `features()`."""
    kinds: list[int] = []
    roles: list[int] = []
    frames: list[int] = []
    texts: list[bytes] = []
    blobs: list[bytes] = []
    shapes: list[tuple[int, ...]] = []

    def add(data: bytes | np.ndarray) -> None:
        blobs.append(data.tobytes() if isinstance(data, np.ndarray) else data)
        shapes.append(data.shape if isinstance(data, np.ndarray) else (0, 0, 0))

    for segment in document.segments:
        roles.append(_ROLES[segment.role])
        if isinstance(segment, Text):
            kinds.append(_TEXT)
            texts.append(segment.text.encode())
        elif isinstance(segment, Image):
            kinds.append(_IMAGE)
            add(segment.data)
        else:
            kinds.append(_VIDEO)
            if isinstance(segment.data, bytes):
                frames.append(0)
                add(segment.data)
            else:
                frames.append(len(segment.data))
                for frame in segment.data:
                    add(frame.data)
    return {
        "key": document.key.encode(),
        "source": document.source.encode(),
        "layout": document.layout.value.encode(),
        "kinds": kinds,
        "roles": roles,
        "frames": frames,
        "texts": texts,
        "references": [text.encode() for text in document.references],
        "blobs": blobs,
        "shapes": np.asarray(shapes, np.int32).reshape(-1, 3),
    }


def serialize(document: Document) -> bytes:
    """Return the document as one record, in the format that TFDS writes."""
    example = _example_class()()
    for name, value in to_example(document).items():
        feature = example.features.feature[name]
        if name in _BYTES:
            feature.bytes_list.value.extend([value] if isinstance(value, bytes) else value)
        else:
            feature.int64_list.value.extend(np.asarray(value, np.int64).ravel().tolist())
    return example.SerializeToString(deterministic=True)


def from_record(record: bytes) -> Document:
    """Return the document of one stored record (the bytes of an ArrayRecord)."""
    fields = _example_class().FromString(record).features.feature
    texts = iter(fields["texts"].bytes_list.value)
    roles = fields["roles"].int64_list.value
    frames = iter(fields["frames"].int64_list.value)
    shapes = np.asarray(fields["shapes"].int64_list.value, np.int64).reshape(-1, 3).tolist()
    blobs = zip(fields["blobs"].bytes_list.value, shapes, strict=True)

    def next_blob() -> bytes | np.ndarray:
        blob, shape = next(blobs)
        return np.frombuffer(blob, np.uint8).reshape(shape) if shape[0] else blob

    segments: list[Segment] = []
    for kind, number in zip(fields["kinds"].int64_list.value, roles, strict=True):
        role = _ROLE_OF[number]
        if kind == _TEXT:
            segments.append(Text(next(texts).decode(), role))
        elif kind == _IMAGE:
            segments.append(Image(next_blob(), role))
        else:
            count = next(frames)
            data = tuple(Image(next_blob()) for _ in range(count)) if count else next_blob()
            segments.append(Video(data, role))  # type: ignore[arg-type]
    return Document(
        segments=tuple(segments),
        source=fields["source"].bytes_list.value[0].decode(),
        key=fields["key"].bytes_list.value[0].decode(),
        layout=Layout(fields["layout"].bytes_list.value[0].decode()),
        references=tuple(text.decode() for text in fields["references"].bytes_list.value),  # older records have none
    )


_import_lock = threading.Lock()


@functools.cache
def _example_class():
    # Imported here so that `import emu_jax.data` stays fast. TFDS imports its modules lazily, and loader threads that
    # trigger the import at the same time deadlock without the lock.
    with _import_lock:
        from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example
