"""Simplify and structurally prune a model with onnxsim. Runs in the rival's own environment, see common.onnxsim.

    python onnxsim_worker.py IN.onnx OUT.onnx SPARSITY [HEADS]

With HEADS that fraction of the attention heads goes first. Prints one line of JSON: seconds per stage, which functions
of onnxsim ran, and the elements of all weights after simplification, after heads, and in the end. A model with
QuantizeLinear or DequantizeLinear also goes through `apply_structured_pruning_qdq`, one with QLinearConv or
QLinearMatMul through `apply_structured_pruning_qoperator`: each of the three leaves the layers of the others alone.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import onnxsim


def passes(model: onnx.ModelProto) -> list[str]:
    """Names of the functions that apply."""
    ops = {node.op_type for node in model.graph.node}
    found = ["apply_structured_pruning"]
    if ops & {"QuantizeLinear", "DequantizeLinear"}:
        found.append("apply_structured_pruning_qdq")
    if ops & {"QLinearConv", "QLinearMatMul", "QGemm"}:
        found.append("apply_structured_pruning_qoperator")
    return found


def elements(model: onnx.ModelProto) -> int:
    """Numbers in floating-point weights."""
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    return sum(math.prod(w.dims) for w in model.graph.initializer if w.data_type in kinds)


def save(model: onnx.ModelProto, out: Path) -> None:
    """Inline where it fits into a protobuf."""
    if model.ByteSize() < 5e8:
        onnx.save(model, out)
    else:
        onnx.save(model, out, save_as_external_data=True, location=f"{out.name}.data")


def main() -> None:
    source, out, sparsity = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(stage: str, value: Any) -> Any:
        nonlocal start
        now = time.perf_counter()
        seconds[stage], start = now - start, now
        return value

    model = lap("load", onnx.load(source))
    model = lap("simplify", onnxsim.simplify(model)[0])
    ran = passes(model)
    left = [elements(model)]
    if len(sys.argv) > 4:
        model = onnxsim.apply_attention_head_pruning(model, float(sys.argv[4]))
    left.append(elements(model))
    for name in ran:
        model = getattr(onnxsim, name)(model, sparsity)
    left.append(elements(model))
    lap("prune", None)
    save(model, out)
    lap("save", None)
    print(f"\n{json.dumps({'seconds': seconds, 'passes': ran, 'parameters': left})}")


if __name__ == "__main__":
    main()
