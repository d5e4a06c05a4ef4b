"""Shards on a disk that fails for a moment."""

import logging
import threading
import time

import pytest

from emu_jax.data.images import DecodeError
from emu_jax.data.loader import reading
from emu_jax.data.loader.prepared_set import PreparedSet
from emu_jax.errors import UserError


@pytest.fixture
def prepared(sets, tmp_path):
    """Return a set whose shards are absent, and a function that brings them back."""
    away = tmp_path / "away"
    away.mkdir()
    here = tmp_path / "set"
    here.mkdir()
    for file in sets["pairs"].iterdir():
        (here / file.name).write_bytes(file.read_bytes())
    data = PreparedSet(here)
    for shard in data.shards:
        shard.rename(away / shard.name)
    return data, lambda: [(away / shard.name).rename(shard) for shard in data.shards]


def test_a_shard_that_returns_is_read(prepared, monkeypatch, caplog):
    data, bring_back = prepared
    monkeypatch.setattr(reading, "PAUSES", (0.1, 0.2, 0.4, 0.8, 1.6))
    timer = threading.Timer(0.5, bring_back)
    start = time.monotonic()
    timer.start()
    with caplog.at_level(logging.WARNING, logger=reading.__name__):
        assert data[0].segments
    assert time.monotonic() - start >= 0.5
    assert f"cannot read {data.shards[0]} (No such file or directory); trying again in 0.1 s" in caplog.text
    assert "trying again in 0.4 s" in caplog.text


def test_a_shard_that_stays_away_is_named(prepared, monkeypatch):
    data, bring_back = prepared
    monkeypatch.setattr(reading, "PAUSES", (0.01, 0.02))
    with pytest.raises(UserError, match=f"Cannot read {data.shards[0]}: No such file .* after 2 further attempts"):
        data[0]
    bring_back()
    assert data[0].segments


def test_damage_is_not_tried_again(prepared, caplog):
    data, bring_back = prepared
    bring_back()
    shard = data.shards[0]
    content = bytearray(shard.read_bytes())
    content[200] ^= 1
    shard.write_bytes(content)
    damaged = 0
    for index in range(len(data)):
        try:
            data[index]
        except DecodeError:
            damaged += 1
    assert damaged >= 1
    assert caplog.text == ""
