"""Plans are replayed to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import onnxprune
from kinds import analysis_of, proto, prune
from law import data
from onnxprune import OptionError, Plan


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("encoder_post_norm", {"layers": 0.5, "heads": 0.5, "recover": "bias"}),
        ("encoder_post_norm", {"layers": 0.5, "whole_layers": True, "channels": 0.25}),
        ("onnx_attention_gqa_cache", {"heads": 0.5, "head_dim": 0.5, "allow_io_change": True}),
        ("moe_dense", {"experts": 0.5, "hidden": 0.25}),
    ],
)
def test_a_plan_is_replayed_to_the_same_bytes(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    result = prune(name, **options)
    path = tmp_path / "plan.json"
    path.write_text(result.plan.to_json())
    read = Plan.from_json(result.plan.to_json(), result.analysis)
    assert read.to_json() == result.plan.to_json()
    for kind in ("whole_layers", "allow_io_change"):
        assert read.settings[kind] == options.get(kind, False)
    again = onnxprune.prune(proto(name), plan=path, measure=False)
    assert data(again) == data(result)
    assert data(onnxprune.prune(proto(name), plan=read, measure=False)) == data(result)
    assert {g.name for g in again.report.groups if g.kept < g.size} == set(result.plan.keep)


def test_a_plan_of_whole_layers_does_not_fit_blocks() -> None:
    plan = prune("encoder_post_norm", layers=0.5, whole_layers=True).plan
    with pytest.raises(OptionError, match="no such group"):
        Plan.from_json(plan.to_json().replace("Add_8:layers", "Add_9:layers").replace("Add_18:layers", "Add_1:layers"),
                       analysis_of("encoder_post_norm"))  # fmt: skip
    heads = prune("encoder_post_norm", heads=0.5).plan.to_json()
    fields = json.loads(heads)
    for g in fields["groups"].values():
        g["kept"] = []
    with pytest.raises(OptionError, match="must keep 1 to 4 different units"):
        Plan.from_json(json.dumps(fields), analysis_of("encoder_post_norm"))
