"""Law: in every mode an option changes the written model or a figure of the report, or is refused by name.

The matrix is made from the declarations: every option that claims an effect, in every mode.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import onnxprune
from models.small import residual_pictures
from onnxprune import kernels
from onnxprune.errors import UserError
from onnxprune.options import Option
from onnxprune.pipeline.options import OPTIONS, Options
from onnxprune.pipeline.recipe import run
from onnxprune.structure.groups import analyze

pytestmark = pytest.mark.usefixtures("brief_search")
FOLDER = Path(tempfile.mkdtemp(prefix="onnxprune-"))  # of pictures, made once


@functools.cache
def pictures(count: int = 15, *, odd: bool = False) -> Path:
    folder = FOLDER / f"pictures{count}{odd}"
    rng = np.random.default_rng(count)
    for i in range(count):
        path = folder / f"class{i % 5}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(np.kron(small, np.ones((3, 4, 1), np.uint8))).save(path)
    return folder


@functools.cache
def plan(**options: Any) -> Path:
    path = FOLDER / f"plan{len(options)}{sorted(options)[0]}.json"
    path.write_text(run(residual_pictures(), Options.of({**QUICK, **options})).plan.to_json())
    return path


def labels() -> Path:
    np.save(FOLDER / "labels.npy", np.arange(15)[::-1] % 5)
    return FOLDER / "labels.npy"


def energy() -> Path:
    path = FOLDER / "energy.json"
    costs = {t: {"multiply": 1, "add": 2} for t in ("float32", "float16", "int8")}
    path.write_text(json.dumps({"source": "ours", "arithmetic": costs, "levels": [{"name": "all", "access": 3}]}))
    return path


def scores() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    return {g.name: rng.random(g.size) for g in analyze(onnxprune.load(residual_pictures())).groups}


QUICK: dict[str, Any] = {"measure": False, "verify": False, "threads": 1}
DATA: Callable[[], dict[str, Any]] = lambda: {"calibration": pictures()}  # noqa: E731
MODES: dict[str, Callable[[], dict[str, Any]]] = {
    "channels": lambda: {"channels": 0.3, "recover": "none"},
    "channels by data": lambda: {"channels": 0.3, **DATA()},
    "layers": lambda: {"layers": 0.6, "recover": "none", "energy": True},
    "target": lambda: {"target_macs": 0.6, "recover": "none"},
    "target by data": lambda: {"target_macs": 0.6, **DATA()},
    "sparsity": lambda: {"sparsity": 0.6, "format": "csr"},
    "sparsity by data": lambda: {"sparsity": 0.6, "format": "csr", **DATA()},
    "pattern": lambda: {"pattern": "2:4", "format": "dense"},
    "channels and sparsity": lambda: {"channels": 0.3, "sparsity": 0.6, "format": "csr", "recover": "none"},
    "cluster": lambda: {"cluster": 8},
    "format": lambda: {"format": "sparse-initializer"},
    "plan": lambda: {"plan": plan(channels=0.3, recover="none")},
    "plan of zeros": lambda: {"plan": plan(sparsity=0.6, format="csr")},
    "tune": lambda: {"channels": 0.3, "recover": "none", "tune": "2steps", "train": pictures()},
    "max-drop": lambda: {"max_drop": 0.9, "evaluate": pictures(), "metric": "loss", "recover": "none"},
}
VALUES: dict[str, Any] = {
    "channels": 0.4, "heads": 0.5, "head_dim": 0.5, "hidden": 0.5, "layers": 0.6, "experts": 0.5, "whole_layers": True,
    "allow_io_change": True, "ratio": lambda: {"channels:w1": 0.7}, "ignore": "w1", "target_macs": 0.5,
    "target_params": 0.5, "target_bytes": 0.5, "target_energy": 0.5, "target_memory": 0.7,
    "energy": True, "energy_table": energy, "plan": lambda: plan(channels=0.3, recover="none"),
    "plan_for_another_model": True, "importance": "l1", "scores": scores, "allocate": "global", "round_to": 1,
    "max_ratio": 0.2, "steps": 3, "sparsity": 0.8, "pattern": "1:4", "quality": 1.0, "permute": False,
    "solver": "sparsegpt", "sparsity_allocate": "erk", "sparsity_schedule": "cubic",
    "format": "sparse-initializer", "values": "float16", "cluster": 4,
    "cluster_per": "channel", "cluster_storage": "uint8", "recover": "bias", "calibration": pictures,
    "samples": 9, "augment": True, "cache": lambda: Path(tempfile.mkdtemp(dir=FOLDER)), "preset": "tf",
    "image_size": 12, "crop": 6, "mean": "100,110,120", "std": "50,60,70", "scale": 0.01, "layout": "NHWC",
    "channel_order": "BGR", "evaluate": pictures, "labels": labels, "metric": "top5", "max_drop": 0.5,
    "input_shape": {"x": (3, 3, 8, 8)}, "verify": True, "measure": True, "tune": "3steps", "learning_rate": 0.01,
    "batch_size": 3, "optimizer": "sgd", "train": pictures, "train_labels": labels, "loss": "squared-error",
    "momentum": 0.5, "weight_decay": 0.5, "schedule": "linear", "warmup": 0,
    "methods": "layers,heads,channels", "plain": True,
    "regularize": "group", "regularize_strength": 2.0,
}  # fmt: skip
EXEMPT = {
    "memory", "jobs", "threads", "seed", "dry_run", "repeat", "latency_table", "elsewhere", "minimize",
    "target_latency",
}  # fmt: skip


@functools.cache
def outcome(mode: str, option: str | None) -> tuple[bytes, Any] | UserError:
    """What a command writes and reports, or the error with which it is refused."""
    asked = {**QUICK, **MODES[mode]()}
    if option is not None:
        value = VALUES[option]
        asked |= {option: value() if callable(value) else value}
    try:
        result = run(residual_pictures(zeros=mode in ("format", "cluster")), Options.of(asked))
    except UserError as e:
        return e
    proto = onnxprune.to_proto(result.model)
    del proto.metadata_props[:]
    figures = result.report.to_dict()
    for name in ("seconds", "asked", "got", "notes"):  # times, and words
        del figures[name]
    return proto.SerializeToString(deterministic=True), figures


def test_every_option_has_a_row() -> None:
    assert {o.name for o in OPTIONS if not o.effect} == set(VALUES)
    assert {o.name for o in OPTIONS if o.effect} == EXEMPT


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.evaluation.measure.SECONDS", 0.01)
    monkeypatch.setattr("onnxprune.runtime.timing.RESAMPLES", 20)
    monkeypatch.setattr("onnxprune.formats.auto.ROUNDS", (2, 10))
    monkeypatch.setattr("onnxprune.pipeline.prepare.MADE_UP", 12)


@pytest.mark.parametrize("option", [o for o in OPTIONS if not o.effect], ids=lambda o: o.name)
def test_no_option_is_ignored(option: Option) -> None:
    for mode in MODES:
        if option.name in MODES[mode]():
            continue
        before, after = outcome(mode, None), outcome(mode, option.name)
        assert not isinstance(before, UserError), f"{mode}: {before}"
        if isinstance(after, UserError):
            said = str(after)
            named = {option.flag, option.off, *(["--format"] if kernels.available() else [])} - {""}
            assert any(word in said for word in named), f"{mode} with {option.flag} is refused without its name: {said}"
        else:
            assert after[0] != before[0] or after[1] != before[1], f"{mode}: {option.flag} has no effect"
