"""Tokenizers, prepared sets, decoder examples and carried tensors of an object store: a file-backed fake of gs://."""

import importlib
import os

import fsspec
import numpy as np
import pytest
from etils.epath.backend import fsspec_backend
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from emu_jax.checkpoints.model_config import find_config
from emu_jax.checkpoints.model_directory import carry_unused, open_unused, save_unused
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.data.records import serialize
from emu_jax.data.tokenizer import Tokenizer, train_tokenizer
from emu_jax.errors import UserError
from emu_jax.io.files import write_json
from emu_jax.io.local_copy import CACHE, local_copy
from emu_jax.io.paths import absolute_path
from emu_jax.io.tensors import tensor_of
from tests.data.conftest import NUMBER_OF, make_set


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Return the folder that `gs://bucket` shows."""
    root = tmp_path / "store"
    (root / "bucket").mkdir(parents=True)

    class Store(DirFileSystem):
        protocol = "gs"

        def __init__(self, **options):
            super().__init__(path=str(root), fs=LocalFileSystem(auto_mkdir=True))

        @classmethod
        def _strip_protocol(cls, path):
            return str(path).removeprefix("gs://").strip("/")

    for name in ("gs", "gcs"):  # fsspec and epath name it differently
        monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, name, Store)
    fsspec_backend._get_filesystem.cache_clear()
    Store.clear_instance_cache()
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    yield root / "bucket"
    Store.clear_instance_cache()
    fsspec_backend._get_filesystem.cache_clear()


def test_files_and_folders(bucket, tmp_path):
    (bucket / "set" / "inner").mkdir(parents=True)
    (bucket / "set" / "inner" / "a.bin").write_bytes(b"abc")
    (bucket / "one.txt").write_text("x")
    copy = local_copy("gs://bucket/set/")
    assert copy.name == "set"
    assert (copy / "inner" / "a.bin").read_bytes() == b"abc"
    assert local_copy("gs://bucket/one.txt").read_text() == "x"
    assert local_copy(tmp_path) == tmp_path


def test_copied_files_are_read_once_and_changed_ones_again(bucket):
    (bucket / "t.txt").write_text("old")
    first = local_copy("gs://bucket/t.txt")
    written = first.stat().st_mtime_ns
    assert local_copy("gs://bucket/t.txt").stat().st_mtime_ns == written
    (bucket / "t.txt").write_text("new")
    os.utime(bucket / "t.txt", (1, 1))
    assert local_copy("gs://bucket/t.txt").read_text() == "new"


def test_memory_store(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE, str(tmp_path))
    store = fsspec.filesystem("memory")
    store.pipe("/a/b/c.txt", b"text")
    assert (local_copy("memory://a/b") / "c.txt").read_bytes() == b"text"
    store.rm("/a", recursive=True)


@pytest.mark.parametrize("read", [local_copy, PreparedSet, Tokenizer.load])
def test_nothing_at_a_url_is_an_error(bucket, read):
    with pytest.raises(UserError, match="gs://bucket/absent"):
        read("gs://bucket/absent")


def test_a_tokenizer(bucket):
    train_tokenizer([f"a cat {i}" for i in range(50)], bucket / "t.model", vocab_size=280)
    assert Tokenizer.load("gs://bucket/t.model").encode("a cat") == Tokenizer.load(bucket / "t.model").encode("a cat")


def test_a_prepared_set(bucket):
    path = make_set(bucket, "pairs", 0)
    remote = PreparedSet(f"gs://bucket/{path.relative_to(bucket)}")
    assert len(remote) == NUMBER_OF["pairs"]
    assert serialize(remote[3]) == serialize(PreparedSet(path)[3])


@pytest.mark.parametrize("start", ["gs://bucket/run", "gs://bucket/run/checkpoints/7"])
def test_carried_tensors(bucket, tmp_path, start):
    (bucket / "run" / "checkpoints" / "7").mkdir(parents=True)
    save_unused(bucket / "run", [tensor_of("t5.embedding", np.arange(6.0).reshape(2, 3))])
    (tmp_path / "next").mkdir()
    carry_unused(start, tmp_path / "next")
    carried = open_unused(tmp_path / "next")
    np.testing.assert_array_equal(carried["t5.embedding"].read(), np.arange(6.0).reshape(2, 3))


@pytest.fixture
def saved(bucket):
    """Save a model with four token rows, which a URL names."""
    config = {"decoder": {"vocab_size": 4}}
    (bucket / "run").mkdir()
    write_json(bucket / "run" / "config.json", config)
    return "gs://bucket/run"


def test_the_config_of_a_warm_start_is_found_behind_a_url(saved):
    """Without it, the rows of tokens that the model does not know would be taken from its padding."""
    assert str(find_config(saved)) == "gs://bucket/run/config.json"


def test_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(absolute_path("gs://bucket/run")) == "gs://bucket/run"
    assert str(absolute_path("run")) == str(tmp_path / "run")
