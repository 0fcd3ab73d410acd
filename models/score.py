"""Score one of the models of this folder, or a pruned variant of it, on its held-out data.

    python models/score.py digits_mlp.pruned.onnx
    python models/score.py anything.onnx --like digits_mlp

Needs onnxruntime and numpy only. The held-out data lie beside this file, see README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent
SHARED = "heldout.npz"  # behind the first word of the names that share it
BATCH = 150


class ScoreError(Exception):
    """The model and the held-out data do not fit together."""


def base_name(model_path: str | Path) -> str:
    """The model's name: the file name up to `.pruned`, without `.onnx`."""
    return Path(model_path).name.split(".pruned")[0].removesuffix(".onnx")


def heldout_path(name: str, data_dir: Path = HERE) -> Path:
    """`<name>.npz` where the model has its own file, else the one that models of a family share."""
    own, shared = data_dir / f"{name}.npz", data_dir / f"{name.split('_')[0]}_{SHARED}"
    if own.is_file():
        return own
    if (data_dir / f"{name}.onnx").is_file() and shared.is_file():
        return shared
    known = ", ".join(sorted(path.stem for path in data_dir.glob("*.onnx") if ".pruned" not in path.name))
    raise ScoreError(f"no held-out data for '{name}' in {data_dir}; name one of these with --like: {known}")


def predict(model_path: str | Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The model's first output for all samples, run in batches; a fixed batch axis is filled up and cut again."""
    if not Path(model_path).is_file():
        raise ScoreError(f"no such file: {model_path}")
    session = ort.InferenceSession(str(model_path), providers=["CPUExecutionProvider"])
    wanted = {value.name: value.shape for value in session.get_inputs()}
    missing = sorted(set(wanted) - set(inputs))
    if missing:
        raise ScoreError(f"the held-out data have no array for these inputs: {', '.join(missing)}")
    fixed = {shape[0] for shape in wanted.values() if isinstance(shape[0], int)}
    batch = fixed.pop() if fixed else BATCH
    count = len(next(iter(inputs.values())))
    outputs = []
    for start in range(0, count, batch):
        feed = {name: inputs[name][start : start + batch] for name in wanted}
        size = len(next(iter(feed.values())))
        if isinstance(next(iter(wanted.values()))[0], int) and size < batch:
            feed = {name: np.concatenate([part, np.repeat(part[-1:], batch - size, 0)]) for name, part in feed.items()}
        outputs.append(session.run(None, feed)[0][:size])
    return np.concatenate(outputs)


def evaluate(outputs: np.ndarray, labels: np.ndarray) -> tuple[str, float]:
    """Top-1 accuracy where there is a label per sample or per token, per-pixel accuracy of `logit > 0` of a mask."""
    if outputs.ndim == 3 and outputs.shape[:2] == labels.shape:
        return "top1", float((outputs.argmax(axis=2) == labels).mean())
    if labels.ndim == 1:
        if outputs.ndim != 2 or len(outputs) != len(labels):
            raise ScoreError(f"expected one row of class scores per sample, the model gives {outputs.shape}")
        return "top1", float((outputs.argmax(axis=1) == labels).mean())
    if outputs.shape != labels.shape:
        raise ScoreError(f"the model gives {outputs.shape}, the masks are {labels.shape}")
    return "pixel_accuracy", float(((outputs > 0) == (labels > 0)).mean())


def score_named(model_path: str | Path, like: str | None = None, data_dir: Path = HERE) -> tuple[str, float]:
    """The metric's name and value."""
    with np.load(heldout_path(like or base_name(model_path), data_dir)) as data:
        inputs = {name: data[name] for name in data.files if name != "labels"}
        labels = data["labels"]
    return evaluate(predict(model_path, inputs), labels)


def score(model_path: str | Path, like: str | None = None) -> float:
    """The metric's value on the held-out data, higher is better; `like` names the model whose data are used."""
    return score_named(model_path, like)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description="Score a model of this folder, or a pruned variant, on held-out data.")
    parser.add_argument("model", type=Path, help="an .onnx file, e.g. digits_mlp.pruned.onnx")
    parser.add_argument("--like", metavar="NAME", help="use the held-out data of this model, e.g. digits_mlp")
    args = parser.parse_args()
    try:
        metric, value = score_named(args.model, args.like)
    except ScoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{metric} {value:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
