"""Ratios of kinds, globs, and amounts that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from kinds import analysis_of, cut_kinds, kept, prune
from models.forms.form import FFN
from onnxprune import OptionError


def test_ratios_of_kinds() -> None:
    only = prune("encoder_post_norm", ratio={"heads:*": 0.5})
    assert cut_kinds(only) == {"heads"}
    assert set(kept(only).values()) == {2}
    both = prune("encoder_post_norm", heads=0.25, ratio=[("channels:MatMul_7", 0.5), ("MatMul_9*", 0.75)], round_to=1)
    assert kept(both) == {"MatMul_1:heads": 3, "MatMul_9:heads": 1, "MatMul_7": FFN // 2}
    plain = prune("encoder_post_norm", ratio={"MatMul_7": 0.5})
    assert kept(plain) == {"MatMul_7": FFN // 2}
    last = prune("encoder_post_norm", ratio=[("heads:*", 0.5), ("heads:MatMul_9*", 0.25), ("heads:MatMul_1:*", 0.0)])
    assert kept(last) == {"MatMul_9:heads": 3}
    block = prune("encoder_post_norm", ratio={"layers:Add_12*": 0.5})
    assert kept(block) == {"Add_12:layers": 0}


def test_what_is_ignored_stays() -> None:
    assert kept(prune("encoder_post_norm", heads=0.5, ignore=["MatMul_1:heads"])) == {"MatMul_9:heads": 2}
    assert kept(prune("encoder_post_norm", heads=0.5, ratio={"*": 0.25}, ignore=["heads:MatMul_9*"])) == {
        "MatMul_1:heads": 3
    }
    blocks = [g.name for g in analysis_of("encoder_post_norm").of_kind("layers")]
    result = prune("encoder_post_norm", layers=0.99, ignore=blocks[:2])
    assert kept(result) == dict.fromkeys(blocks[2:], 0)
    part = prune("encoder_post_norm", heads=0.5, channels=0.5, ignore=["channels:*"])
    assert cut_kinds(part) == {"heads"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 0.5, "ratio": {"heads:nothing*": 0.5}}, "ratio='heads:nothing.*' matches no group"),
        ({"heads": 0.5, "ratio": {"layers:MatMul_1:heads": 0.5}}, "matches no group"),
        ({"heads": 0.5, "ignore": ["MatMul_7"]}, "ignore='MatMul_7' matches no group"),
        ({"layers": 0.5, "ignore": ["heads:*"]}, "ignore='heads:.*' matches no group"),
        ({"heads": 1.0}, "heads=1: expected a fraction"),
        ({"head_dim": -0.1}, "head_dim=-0.1: expected a fraction"),
        ({"layers": 1.5}, "layers=1.5: expected a fraction"),
        ({"ratio": {"heads:*": 1.0}}, "expected a fraction"),
        ({"heads": 0.95}, r"heads=0.95 would leave 0.2 of the 4 heads of MatMul_1:heads.*give at most 0.75"),
        ({"ratio": {"heads:MatMul_9*": 0.95}}, "of MatMul_9:heads.*give at most 0.75"),
    ],
)
def test_amounts_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        prune("encoder_post_norm", **options)
