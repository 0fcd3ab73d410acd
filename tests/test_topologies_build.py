"""The oracle of the topology library itself: every model is valid, runs, and means the same after folding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from models.builder import folded, random_feeds
from models.nets import run
from models.topologies import PRUNES, TOPOLOGIES, UNCHECKED, UNRUNNABLE

RUNNABLE = TOPOLOGIES | UNCHECKED
BUILDERS = RUNNABLE | UNRUNNABLE


def test_registries_are_disjoint_and_complete() -> None:
    assert len(BUILDERS) == len(TOPOLOGIES) + len(UNCHECKED) + len(UNRUNNABLE) == len(PRUNES)
    assert BUILDERS.keys() == PRUNES.keys()


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_build_is_deterministic_and_valid(name: str) -> None:
    model = BUILDERS[name]()
    assert model.SerializeToString(deterministic=True) == BUILDERS[name]().SerializeToString(deterministic=True)
    if name not in UNCHECKED:
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("name", sorted(RUNNABLE))
def test_runs_and_folds(name: str) -> None:
    model = RUNNABLE[name]()
    plain = folded(model)
    if name not in UNCHECKED:
        onnx.checker.check_model(plain, full_check=True)
    for batch in (1, 2):
        feeds = random_feeds(model, seed=batch, batch=batch)
        outputs = run(model, feeds, optimise=True)
        for expected, got, value in zip(outputs, run(plain, feeds, optimise=True), model.graph.output, strict=True):
            assert [
                d.dim_value or size for d, size in zip(value.type.tensor_type.shape.dim, got.shape, strict=True)
            ] == [*got.shape]
            assert np.isfinite(expected).all()
            np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3 * max(1.0, np.abs(expected).max(initial=0)))


@pytest.mark.parametrize("name", sorted(UNRUNNABLE))
def test_unrunnable_does_not_run(name: str) -> None:
    """A row moves to the runnable ones as soon as onnxruntime learns its operator."""
    with pytest.raises(Exception, match=r"layout|com\.example"):
        run(UNRUNNABLE[name](), {}, optimise=True)


def test_random_feeds_resolve_symbolic_sizes() -> None:
    feeds = random_feeds(TOPOLOGIES["llama_kv_cache"](), batch=3)
    assert feeds["input_ids"].shape == (3, 6) and feeds["past_key"].shape == (3, 2, 8, 8)
    assert feeds["input_ids"].dtype == np.int64 and feeds["input_ids"].max() < 8
    assert TOPOLOGIES["conv_chain_inputs_ir3"]().ir_version == 3
    assert random_feeds(TOPOLOGIES["conv_chain_inputs_ir3"]()).keys() == {"input"}
