"""An MLP 784-40-20-10 on MNIST at 90, 95 and 98% sparsity without training, by solver and by allocation.

    python tools/bench_mnist.py                      # trains the MLP first (scikit-learn), a minute
    python tools/bench_mnist.py --seeds 3 --solvers admm,obc --allocations error,lamp

Published for one-shot second-order methods on such an MLP: about 89% at 95% sparsity and 55% at 98%. 1000 unlabelled
training images calibrate, 5000 others are scored; the median over seeds of the training is printed.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import common  # noqa: F401

WIDTHS = (40, 20)
EPOCHS = 10  # about 94%
SPARSITIES = (0.9, 0.95, 0.98)


def trained(x: np.ndarray, y: np.ndarray, seed: int) -> onnx.ModelProto:
    """The MLP as ONNX: input `x` float32 `(N, 784)`."""
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged: that is the point
        mlp = MLPClassifier(WIDTHS, max_iter=EPOCHS, random_state=seed).fit(x, y)
    nodes, weights, name = [], [], "x"
    for k, (w, b) in enumerate(zip(mlp.coefs_, mlp.intercepts_, strict=True)):
        weights += [numpy_helper.from_array(w.astype(np.float32), f"w{k}")]
        weights += [numpy_helper.from_array(b.astype(np.float32), f"b{k}")]
        nodes.append(helper.make_node("Gemm", [name, f"w{k}", f"b{k}"], [f"h{k}"], name=f"fc{k}"))
        name = f"h{k}"
        if k < len(WIDTHS):
            nodes.append(helper.make_node("Relu", [name], [f"r{k}"], name=f"relu{k}"))
            name = f"r{k}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 784])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 10])]
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=Path(__file__).resolve().parents[1] / "../shared/assets")
    parser.add_argument("--solvers", default="magnitude,wanda,sparsegpt,obc,admm")
    parser.add_argument("--allocations", default="error,lamp")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    path = args.assets / "data" / "mnist.npz"
    if not path.exists():
        sys.exit(f"{path} is not there; name the folder with --assets")
    import onnxprune
    from onnxprune.graph.io import to_proto

    data = np.load(path)
    x, xt = (data[k].reshape(len(data[k]), -1).astype(np.float32) / 255 for k in ("x_train", "x_test"))
    y, yt = data["y_train"], data["y_test"]
    calibration = x[:: len(x) // 1000][:1000]
    models = [trained(x, y, seed) for seed in range(args.seeds)]

    def score(model: onnx.ModelProto) -> float:
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString())
        return float((session.run(None, {"x": xt})[0].argmax(1) == yt).mean())

    print(f"dense {100 * np.median([score(m) for m in models]):.2f}")
    print(f"{'solver':<11}{'allocation':<12}" + "".join(f"{s:>8.0%}" for s in SPARSITIES))
    free = [("no data", "global", None)]
    for solver, allocation, samples in free + [
        (s, a, {"x": calibration}) for s in args.solvers.split(",") for a in args.allocations.split(",")
    ]:
        row = []
        for sparsity in SPARSITIES:
            found = [
                onnxprune.prune(
                    m, sparsity=sparsity, calibration=samples, solver=None if samples is None else solver,
                    sparsity_allocate=allocation, format="dense", samples=1000, verify=False, measure=False,
                ).model
                for m in models
            ]  # fmt: skip
            row.append(100 * float(np.median([score(to_proto(m)) for m in found])))
        print(f"{solver:<11}{allocation:<12}" + "".join(f"{v:8.2f}" for v in row), flush=True)


if __name__ == "__main__":
    main()
