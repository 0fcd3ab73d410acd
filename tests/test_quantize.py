"""What onnxruntime's quantizers say of a pruned model: nothing that they do not say of the original."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

from onnxprune import prune

ROOT = Path(__file__).resolve().parent.parent


class Once(CalibrationDataReader):
    """One random batch of a size that the model takes."""

    def __init__(self, path: Path) -> None:
        rng = np.random.default_rng(0)
        inputs = onnx.load(path).graph.input
        shapes = {i.name: [d.dim_value or 2 for d in i.type.tensor_type.shape.dim] for i in inputs}
        self.feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        self.left = [self.feeds]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def dynamic(source: Path, target: Path) -> None:
    quantize_dynamic(source, target)


def qdq(source: Path, target: Path) -> None:
    quantize_static(source, target, Once(source), quant_format=QuantFormat.QDQ)


def qoperator(source: Path, target: Path) -> None:
    quantize_static(source, target, Once(source), quant_format=QuantFormat.QOperator)


@pytest.mark.parametrize("quantize", [dynamic, qdq, qoperator])
@pytest.mark.parametrize("name", ["digits_resnet_bn", "digits_gru"])  # convolutions get biases; a shape is computed
def test_quantizers_say_nothing_new(
    name: str, quantize: Callable[[Path, Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original, pruned, quantized = ROOT / "models" / f"{name}.onnx", tmp_path / "pruned.onnx", tmp_path / "q.onnx"
    result = prune(original, channels=0.3, recover="bias", measure=False, verify=False)
    result.save(pruned)
    said = []
    for path in (original, pruned):
        caplog.clear()
        with caplog.at_level(logging.WARNING), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            quantize(path, quantized)
        said.append({record.getMessage() for record in caplog.records} | {str(w.message) for w in caught})
        outputs = ort.InferenceSession(quantized, providers=["CPUExecutionProvider"]).run(None, Once(path).feeds)
        assert all(np.isfinite(y).all() for y in outputs)
    assert said[1] <= said[0]


def test_pruned_then_quantized_then_sparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script of docs/guide.md; the zeros come into the integers, and the outputs are finite."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    prune("models/digits_resnet_bn.onnx", channels=0.3, recover="bias", measure=False).save("small.onnx")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.DOTALL)
    exec(next(block for block in blocks if "quantize_static" in block), {})
    prune("small.int8.onnx", pattern="2:4", format="dense", permute=False, measure=False).save("last.onnx")
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load("last.onnx").graph.initializer]
    weights = [w for w in stored if w.dtype == np.int8 and w.ndim == 4 and w[0].size % 4 == 0]
    assert len(weights) > 10
    assert all(float((w == 0).mean()) >= 0.5 for w in weights)
