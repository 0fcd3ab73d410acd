"""Peak memory of a run: by hand, beside a simulation of the run, and as a target."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

import onnxprune
from conftest import ROOT, Cli
from models.nets import build, normal
from onnxprune import OptionError
from onnxprune.allocation.budget import Tables, Usage, meters_of
from onnxprune.graph.io import load
from onnxprune.graph.peak import Peak
from onnxprune.pipeline.footprint import peak_of
from onnxprune.structure.groups import analyze

PERCEPTRON = "h = MatMul(x, w) r = Relu(h) k = MatMul(r, v) s = Relu(k) y = MatMul(s, u)"
RESNET = ROOT / "models" / "digits_resnet_bn.onnx"
MAP = "float[1,4,8,8]"  # 1024 bytes
ONE = normal(4, 4, 1, 1)  # 64 bytes


def peak(nodes: str, **options: Any) -> Peak:
    return peak_of(load(build(nodes, MAP, **options)))


@pytest.mark.parametrize(
    ("nodes", "tensors", "why"),
    [
        ("y = Conv(x, w)", 2048, "input and output"),
        ("h = Conv(x, w) y = Conv(h, v)", 2048, "the input is gone when the output is made"),
        ("h = Conv(x, w) r = Relu(h) y = Conv(r, v)", 2048, "Relu writes where it reads"),
        ("h = Conv(x, w) r = Sin(h) y = Conv(r, v)", 2048, "and Sin beside it"),
        ("h = Conv(x, w) y = Add(h, x)", 2048, "the sum takes the place of what is read no more"),
        ("h = Conv(x, w) k = Conv(h, v) s = Add(k, x) y = Conv(s, v)", 3072, "the input is kept for the sum"),
        ("h = Conv(x, w) r = Relu(h) s = Conv(h, v) y = Add(r, s)", 3072, "Relu copies what is needed again"),
        ("h = Conv(x, w) f = Flatten(h) y = Sin(f)", 2048, "a view takes nothing"),
        ("h = Conv(x, w) f = Flatten(h) g = Relu(f) k = Conv(h, v) s = Flatten(k) y = Add(g, s)", 3072, "a view stays"),
        ("h = Conv(x, w) k, y = Split<axis = 1, num_outputs = 2>(h)", 2048, "both halves beside the whole"),
    ],
)
def test_tensors_that_are_live_together(nodes: str, tensors: int, why: str) -> None:
    weights: dict[str, Any] = {"w": ONE} | ({"v": ONE} if "v)" in nodes else {})
    found = peak(nodes, **weights, opset=18)
    assert (found.weights, found.tensors) == (64 * len(weights), tensors), why
    assert found.bytes == found.weights + found.tensors


def test_the_peak_is_where_it_is_said_to_be() -> None:
    found = peak("h = Conv(x, w) k = Conv(h, v) y = Conv(k, u)", w=ONE, v=normal(16, 4, 1, 1), u=normal(2, 16, 1, 1))
    assert (found.tensors, found.node) == (1024 + 4096, "Conv(k)")


def test_a_cut_is_counted_as_its_file() -> None:
    analysis = analyze(load(RESNET))
    result = onnxprune.prune(RESNET, channels=0.5, recover="none", verify=False, measure=False)
    planned = analysis.peak().of(analysis.keep_ids(dict(result.plan.keep)))
    assert result.written is not None
    assert planned.bytes == pytest.approx(peak_of(result.written).bytes, rel=1e-9)


def test_what_the_search_goes_by_falls_with_every_large_moment() -> None:
    """Two equal moments: the peak falls with neither alone, the eased one with each."""
    nodes = "h = Conv(x, w) k = Conv(h, v) m = MaxPool<kernel_shape = [1, 1]>(k) y = Conv(m, u)"
    weights: dict[str, Any] = {"w": normal(16, 4, 1, 1), "v": normal(16, 16, 1, 1), "u": normal(2, 16, 1, 1)}
    analysis = analyze(load(build(nodes, MAP, **weights)))
    meter = meters_of(analysis, Tables(), ["memory"])["memory"]
    usage = Usage(meter, analysis, analysis.groups, analysis.keep_ids({}))
    whole = np.array([16.0, 16.0])
    maps = [usage(whole - step) - usage(whole) for step in (np.array([8, 0]), np.array([0, 8]))]
    eased = [np.diff(usage.at(whole).along(k, np.array([[16.0], [8.0]])))[0] for k in (0, 1)]
    assert max(maps) > -2100  # the second pair of maps is as large as the first: weights alone went
    assert max(eased) < -1.2 * abs(max(maps))
    assert usage(whole) <= usage.at(whole).along(0, np.array([[16.0]]))[0]


@pytest.mark.parametrize("options", [{"calibration": {"x": normal(24, 16)}}, {"recover": "none"}])
@pytest.mark.parametrize("target", ["60%", "4KB"])
def test_a_target_holds_in_the_written_file(target: str, options: dict[str, Any]) -> None:
    weights: dict[str, Any] = {"w": normal(16, 32), "v": normal(32, 32), "u": normal(32, 4)}
    proto = build(PERCEPTRON, "float[1,16]", **weights)
    result = onnxprune.prune(proto, target_memory=target, measure=False, round_to=1, **options)
    before, after = result.report.before.memory, result.report.after.memory
    assert before is not None and after is not None and result.written is not None
    limit = 0.6 * before.bytes if "%" in target else 4e3
    assert 0.9 * limit < after.bytes <= 1.05 * limit  # biases that make up for what went are not in the plan
    assert after == peak_of(result.written)
    assert result.report.got[0].got == pytest.approx(after.bytes / before.bytes)


def test_a_target_out_of_reach_says_how_far_one_gets() -> None:
    with pytest.raises(OptionError, match=r"target_memory='1KB' cannot be reached .*\d+% of (the )?memory are left"):
        onnxprune.prune(RESNET, target_memory="1KB", recover="none")


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="peak memory is read from /proc")
def test_the_report_measures_both_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of 4 MB, of which a half goes: the measured peaks are at least as far apart as those of the model."""
    monkeypatch.setattr("onnxprune.evaluation.measure.SECONDS", 0.02)
    proto = wide()
    report = onnxprune.prune(proto, target_memory="60%", recover="none", verify=False).report
    before, after = report.before.memory, report.after.memory
    assert before is not None and after is not None
    assert before.measured is not None and after.measured is not None
    assert before.measured - after.measured > before.bytes - after.bytes > 1.6e6
    assert "peak memory (measured)" in str(report)


def wide() -> ModelProto:
    proto: ModelProto = build("h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", "float[1,512]", w=normal(512, 1024),
                              v=normal(1024, 512))  # fmt: skip
    return proto


def test_inspect_tells_the_peak(call: Cli) -> None:
    assert "peak memory of a run: 753.1 kB (weights 704 kB, tensors 49.15 kB at " in call(f"inspect {RESNET}").out
