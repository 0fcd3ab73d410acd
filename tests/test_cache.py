"""Cache folders that runs share: keys, whole files, checks of what is read, several processes at once."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune import cache
from onnxprune.allocation.levels import Levels, cache_key, cached
from onnxprune.errors import OptionError

ARRAYS = {"weight": np.arange(6.0).reshape(2, 3), "rows": 3, "reason": "", "empty": np.zeros((0, 2), np.float32)}
CONTENT = {"kept": {"g": [4, 2]}, "damage": {"g": [0.0, 0.1 + 0.2]}}
LEVELS = Levels({"g": [2, 1]}, {"g": [0.0, 0.5]}, {"g": np.array([0.25, 1.0])})


def key(**changed: Any) -> str:
    options = {"solver": "obs", "ridge": 0.01, "seed": 0, "given": None}
    return cache.digest(*{"kind": "layers", "model": "m", "data": "d", "options": options, **changed}.values())


OTHERS: list[dict[str, Any]] = [
    {"kind": "levels"},
    {"model": "n"},
    {"data": "e"},
    {"options": {"solver": "wanda", "ridge": 0.01, "seed": 0, "given": None}},
    {"options": {"solver": "obs", "ridge": 0.02, "seed": 0, "given": None}},
    {"options": {"solver": "obs", "ridge": 0.01, "seed": 1, "given": None}},
    {"options": {"solver": "obs", "ridge": 0.01, "seed": 0, "given": np.zeros(2000)}},
    {"options": {"solver": "obs", "ridge": 0.01, "seed": 0, "given": np.eye(1, 2000, 1000)[0]}},  # prints as the last
    {"options": {"solver": "obs", "ridge": 0.01, "seed": 0, "given": np.zeros(2000, np.float32)}},
    {"options": {"solver": "obs", "ridge": 0.01, "seed": 0, "given": np.zeros((1, 2000))}},
]


def test_keys_differ_in_all_that_they_are_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key(), *(key(**other) for other in OTHERS)]
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    keys.append(key())
    monkeypatch.setattr(cache, "version", lambda: "other")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == key(options={"seed": 0, "given": None, "ridge": 0.01, "solver": "obs"}) == keys[-1]


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


Write = Callable[[Path, str, Any], None]
Read = Callable[[Path, str], Any]
FORMS: dict[str, tuple[Write, Read, Any]] = {
    "json": (cache.write_json, cache.read_json, CONTENT),
    "arrays": (cache.write_arrays, cache.read_arrays, ARRAYS),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read(tmp_path: Path, form: str) -> None:
    write, read, content = FORMS[form]
    path = tmp_path / "entry"
    assert read(path, key()) is None
    write(path, key(), content)
    found = read(path, key())
    assert found is not None and same(found, content)
    assert [p.name for p in tmp_path.iterdir()] == ["entry"]


@pytest.mark.parametrize("form", FORMS)
def test_what_does_not_fit_is_not_read(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    write, read, content = FORMS[form]
    path = tmp_path / "entry"
    write(path, key(), content)
    whole = path.read_bytes()
    middle = len(whole) // 2
    with caplog.at_level(logging.WARNING):
        assert read(path, key(model="n")) is None and "made anew" in caplog.text
        for data in (b"", whole[:1], whole[:middle], whole[:-1], b"garbage", b"null", b"[]", b'{"entry": 3}', b"\xff"):
            path.write_bytes(data)
            caplog.clear()
            assert read(path, key()) is None and len(caplog.records) == 1
        for at in range(0, len(whole), max(1, len(whole) // 60)):  # no bit of the content is another one
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            found = read(path, key())
            assert found is None or same(found, content)


def test_a_write_that_fails_leaves_the_old_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "entry"
    cache.write_json(path, key(), CONTENT)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OptionError, match=r"^--cache .*No space"), cache.cache_errors(tmp_path):
        cache.write_json(path, key(), {"kept": {}})
    assert cache.read_json(path, key()) == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["entry"]


def test_files_of_killed_runs_go(tmp_path: Path) -> None:
    old, new = tmp_path / ".entry.00000000.tmp", tmp_path / ".entry.11111111.tmp"
    for name in (old, new):
        name.write_text("half")
    os.utime(old, (time.time() - 2 * cache.STALE,) * 2)
    cache.write_json(tmp_path / "entry", key(), CONTENT)
    assert not old.exists() and new.exists()  # that may be of a run that is writing


# ---------------------------------------------------------------------------------------------------------------------
# The level database
# ---------------------------------------------------------------------------------------------------------------------


def test_levels_of_the_same_key_alone(tmp_path: Path) -> None:
    made = []

    def make() -> Levels:
        made.append(1)
        return LEVELS

    for options, hit in (({"seed": 0}, False), ({"seed": 0}, True), ({"seed": 1}, False), ({"seed": 0}, True)):
        levels, was = cached(tmp_path, cache_key("model", "data", options), ["g"], make)
        assert was is hit and levels.to_json() == LEVELS.to_json()
    assert len(made) == 2
    a, b = sorted(tmp_path.iterdir())
    a.write_bytes(b.read_bytes())  # the entry of another key under this name
    before = len(made)
    for seed in (0, 1):
        cached(tmp_path, cache_key("model", "data", {"seed": seed}), ["g"], make)
    assert len(made) == before + 1


RACE = """
import sys, numpy as np
from pathlib import Path
from onnxprune import cache
folder, own = Path(sys.argv[1]), int(sys.argv[2])
key = cache.digest("race", own)
for k in range(60):
    path = folder / "entry"
    found = cache.read_arrays(path, key)
    assert found is None or (found["x"] == own).all() and found["x"].shape == (20000,)
    cache.write_arrays(path, key, {"x": np.full(20000, own)})
"""


def test_processes_at_once_never_mix(tmp_path: Path) -> None:
    words = [sys.executable, "-c", RACE, str(tmp_path)]
    runs = [subprocess.Popen([*words, str(k)], stderr=subprocess.PIPE, text=True) for k in (1, 2, 2, 3)]
    runs[3].kill()  # wherever it is
    errors = [run.communicate(timeout=60)[1] for run in runs]
    assert [run.returncode for run in runs[:3]] == [0, 0, 0], errors
    assert any(cache.read_arrays(tmp_path / "entry", cache.digest("race", k)) is not None for k in (1, 2, 3))
