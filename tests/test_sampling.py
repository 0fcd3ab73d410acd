"""How many rows and samples a layer's regression takes, and how long that is said to take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnxprune
from models.nets import PICTURES, build, normal
from onnxprune import analyze, load
from onnxprune.calibration.effort import FEWEST, Effort, layer_works, samples_needed
from onnxprune.layers.layer import linear_layers
from onnxprune.layers.regression import Rows
from onnxprune.layers.sampling import (
    MOST_EACH,
    ROWS,
    ROWS_EACH,
    SAMPLES,
    Sampling,
    each_for,
    rows_needed,
    sampling,
    useful,
)
from onnxprune.recovery.least_squares import find_tasks
from onnxprune.runtime.stream import Stream

NET = "h = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(h) y = Conv(r, v)"
WEIGHTS: dict[str, Any] = {"w": normal(6, 3, 3, 3), "v": normal(4, 6, 3, 3, seed=1)}


def test_rows_grow_with_width_and_error_up_to_what_is_affordable() -> None:
    assert rows_needed(10, 1, ROWS_EACH) == ROWS
    assert rows_needed(1000, 1, 20) == 20_000
    assert rows_needed(16_384, 1, 100) == 10 * 16_384
    assert each_for(0.0) == ROWS_EACH and each_for(1.0) == MOST_EACH
    assert ROWS_EACH < each_for(0.1) < MOST_EACH


@pytest.mark.parametrize(("positions", "batches"), [(1, 100), (49, 100), (100_000, SAMPLES)])
def test_the_more_positions_the_fewer_samples(positions: int, batches: int) -> None:
    plan = sampling(10_000, positions, 100, 1)
    assert plan.batches == batches
    assert plan.share == min(1.0, 10_000 / (batches * positions))
    assert 1 <= useful(positions) <= positions


def test_a_batch_gives_its_share_and_one_row_at_least() -> None:
    rng = np.random.default_rng(0)
    assert Sampling(1, 0.3).rows(10) == 3 and Sampling(1, 1e-9).rows(10) == 1 and Sampling(1, 0.5).rows(0) == 0
    picked = Sampling(1, 0.5).picked(10, rng)
    assert picked is not None and len(set(picked)) == 5 and (np.diff(picked) > 0).all() and max(picked) < 10
    assert Sampling(1, 1.0).picked(10, rng) is None


def test_rows_come_once_and_again_as_they_were() -> None:
    model = load(build(NET, y="float[n,4,h,w]", **WEIGHTS))
    analysis = analyze(model)
    group = analysis.groups[0]
    keep = analysis.keep_ids({group.name: np.array([1, 1, 1, 1, 0, 0], bool)})
    from onnxprune.graph.edit import Edit
    from onnxprune.structure.surgery import prune_model

    edit = Edit(prune_model(analysis, keep))
    (task,), _ = find_tasks(analysis, keep, keep, edit)
    batches = [{"x": normal(2, *PICTURES[1:], seed=s).astype(np.float32)} for s in range(3)]
    rows = Rows(task, Stream(model, batches), Stream(edit.model, batches), seed=0)
    assert list(rows) == []
    first = list(rows.extend(1e-9))  # as many as there are, of so few
    assert rows.complete and list(rows.extend(MOST_EACH)) == []
    rows.parts = None  # as where they do not fit
    for one, other in zip(first, rows, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_layers_with_many_positions_need_few_samples() -> None:
    large = analyze(build(NET, **WEIGHTS, x="float[1,3,256,256]", y="float[1,4,h,w]"))
    small = analyze(build(NET, **WEIGHTS, x="float[1,3,8,8]", y="float[1,4,h,w]"))
    assert samples_needed(large, 256) < samples_needed(small, 256) <= 256
    assert [w.groups for w in layer_works(small)] == [x.group for x in linear_layers(small.model)]


def test_effort_tells_what_the_time_is_enough_for() -> None:
    effort = Effort(run=0.1, fixed=2.0, passes=5.0)
    assert effort.seconds(100) == 52.0
    assert effort.affordable(effort.seconds(100)) == 100


def test_made_up_samples_are_fewer_where_time_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(NET, **WEIGHTS, x="float[1,3,8,8]", y="float[1,4,h,w]")
    options: dict[str, Any] = {"channels": 0.3, "measure": False}
    monkeypatch.setattr("onnxprune.pipeline.prepare.BUDGET", 0.0)
    few = onnxprune.prune(model, **options).report
    assert few.calibration is not None and few.calibration.startswith(f"{FEWEST} made-up images")
    assert any(f"{FEWEST} made-up samples instead of" in note for note in few.notes)
    said = onnxprune.prune(model, samples=40, **options).report
    assert said.calibration is not None and said.calibration.startswith("40 made-up images")
    assert said.expected is not None and said.to_dict()["seconds"]["expected"] == said.expected
