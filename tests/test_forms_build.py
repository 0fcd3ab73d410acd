"""The oracle of the transformer library itself: every form is valid, runs, and depends on its inputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from models.builder import folded
from models.forms import TRANSFORMERS, Form, feeds
from models.nets import run

SIZES = (2, 5)  # of symbolic dimensions


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_build_is_deterministic_and_valid(name: str) -> None:
    model = TRANSFORMERS[name].build()
    assert model.SerializeToString(deterministic=True) == TRANSFORMERS[name].build().SerializeToString(
        deterministic=True
    )
    names = [node.name for node in model.graph.node]
    assert all(names) and len(set(names)) == len(names)
    if TRANSFORMERS[name].checked:
        onnx.checker.check_model(model, full_check=True)
    else:
        with pytest.raises(onnx.checker.ValidationError, match="No Op registered"):
            onnx.checker.check_model(model)


@pytest.mark.parametrize("form", [f for f in TRANSFORMERS.values() if f.runs], ids=lambda f: f.name)
def test_runs_and_is_not_degenerate(form: Form) -> None:
    model = form.build()
    plain = folded(model)
    dynamic = any(d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim)
    for size in SIZES if dynamic else SIZES[:1]:
        inputs, others = (feeds(model, size=size, seed=seed) for seed in (0, 1))
        runs = zip(model.graph.output, run(model, inputs), run(plain, inputs), run(model, others), strict=True)
        for value, y, same, other in runs:
            declared = [d.dim_value for d in value.type.tensor_type.shape.dim]
            assert [d or n for d, n in zip(declared, y.shape, strict=True)] == [*y.shape]
            assert np.isfinite(y).all()
            np.testing.assert_allclose(same, y, atol=form.tolerance * np.abs(y).max(), rtol=0)
            assert y.std() > 1e-2 and np.abs(y - other).max() > 1e-2
