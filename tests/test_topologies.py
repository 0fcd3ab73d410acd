"""Every topology of the field, raw as exported and after constant folding: it shrinks, and pruned equals masked."""

from __future__ import annotations

import pytest

import onnxprune
from law import cut
from models.builder import contents
from models.topologies import PRUNES, TOPOLOGIES, UNRUNNABLE, folded
from onnxprune.structure.verify import QUANTIZED_TOLERANCE

# a sum that lands on the other side of a rounding boundary moves by a whole step of the next layer
QUANTIZED = ("qdq", "qlinear", "integer", "quantize")
FLOAT16 = ("float16", "fp16")


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_pruned_equals_masked(name: str) -> None:
    model = TOPOLOGIES[name]()
    plain = folded(model)
    limit = QUANTIZED_TOLERANCE if any(q in name for q in QUANTIZED) else 1e-4
    for form in [model] if contents(plain) == contents(model) else [model, plain]:  # a third has nothing to fold
        result = cut(form)
        assert result.error <= (2e-2 if any(f in name for f in FLOAT16) else limit)
        assert (result.removed > 0) == PRUNES[name]


@pytest.mark.parametrize("name", UNRUNNABLE)
def test_what_onnxruntime_cannot_run_is_still_pruned(name: str) -> None:
    model = UNRUNNABLE[name]()
    with pytest.raises(onnxprune.OptionError, match="verify=False"):
        onnxprune.prune(model, channels=0.3, recover="bias")
    result = onnxprune.prune(model, channels=0.3, recover="bias", verify=False)
    assert result.report.after.parameters < result.report.before.parameters
    assert any("latency not measured" in note for note in result.report.notes)


@pytest.mark.parametrize("name", list(TOPOLOGIES)[::10])
def test_ratio_zero_is_the_identity(name: str) -> None:
    model = TOPOLOGIES[name]()
    result = cut(model, 0.0, check=False)
    assert onnxprune.to_proto(result.pruned) == onnxprune.to_proto(onnxprune.load(model))
