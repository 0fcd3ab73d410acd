"""A training step of ours beside the forward pass, PyTorch's step and onnxsim's: seconds, memory, and the gradients.

    python tools/bench_gradient.py --torch PYTHON --onnxsim PYTHON --json gradient.json      # --resume goes on with it
    python tools/bench_gradient.py --torch PYTHON --only 'resnet*' --cpu --threads 1         # a part, processor time

Every tool runs in a process of its own, in turns, on the same network, batch, inputs and as many threads; without
--onnxsim the rival is left out, --torch is by default this python. Columns: median seconds of an ordinary session of
the model, of the forward pass with weights as inputs and the loss, and of a step (loss and gradients of every weight,
without an update but for onnxsim's); the step over each; growth of resident memory from before the step is made to its
peak, over PyTorch's; the largest difference of a weight's gradient from PyTorch's in float64, relative to its norm, and
that of PyTorch's own in float32 (where a Relu has rounding noise before it, neither is small). The exit code is 1 where
that of a weight is above 1e-4 and above twice PyTorch's. --cpu: processor time in place of real time, for a machine on
which others work. onnxsim has no logarithms of Softmax: its loss is a squared error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

import common
from networks import lenet, lstm

ROUNDS, SECONDS = 7, 30.0  # rounds at least, and seconds of one network at most where there are as many
CLOSE = 1e-4  # gradients, relative to the norm of a weight's
BOUNDS = {"PyTorch": 1.3, "forward": 4.0, "memory": 1.3}


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


def random50() -> ModelProto:
    """ResNet-50 with random weights."""
    from resnet50 import resnet50

    return resnet50()


def networks(args: Any) -> dict[str, tuple[Path | Callable[[], ModelProto], tuple[int, ...]]]:
    """Name -> file, or what makes it, and the shape of its input; whole numbers below 65 go into a model of tokens."""
    pictures = common.assets(args.assets) / "models"
    return {
        "lenet": (lenet, (64, 1, 28, 28)),
        "resnet20": (pictures / "resnet20_cifar10.onnx", (64, 3, 32, 32)),
        "resnet56": (pictures / "resnet56_cifar10.onnx", (64, 3, 32, 32)),
        "mobilenetv2": (pictures / "mobilenetv2_100_224_imagenet.onnx", (8, 3, 224, 224)),
        "resnet50": (random50, (8, 3, 224, 224)),
        "shakespeare_llama": (common.REPO / "models" / "shakespeare_llama.onnx", (8, 128)),
        "lstm": (lstm, (64, 32, 128)),
        "digits_vit": (common.REPO / "models" / "digits_vit.onnx", (64, 1, 16, 16)),
    }


def write(folder: Path, source: Path | Callable[[], ModelProto], shape: tuple[int, ...]) -> None:
    """What the workers read."""
    from onnxprune.gradient.backward import Backward
    from onnxprune.graph.io import load, to_proto
    from onnxprune.training.losses import Objective, Target
    from onnxprune.training.weights import trainable

    model = onnx.load(source) if isinstance(source, Path) else source()
    onnx.save(model, folder / "model.onnx")
    rng = np.random.default_rng(0)
    info = model.graph.input[0]
    whole = info.type.tensor_type.elem_type != TensorProto.FLOAT
    x: NDArray[Any] = rng.integers(0, 65, shape) if whole else rng.standard_normal(shape).astype(np.float32)
    feeds = {info.name: x}
    y = common.session(folder / "model.onnx").run(None, feeds)[0]
    scores = rng.standard_normal(y.shape).astype(np.float32)
    output = model.graph.output[0].name
    targets = {output: scores - np.log(np.exp(scores).sum(-1, keepdims=True))}
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
    np.savez(folder / "targets.npz", **targets)
    read = load(folder / "model.onnx")
    b = Backward(read, {info.name: shape})
    loss, names = Objective((Target(output, "squared-error"),)).add(b, {output: y.shape})
    loss = b.op("Squeeze", loss) if b.rank(loss) else loss
    forward = to_proto(b.finished([loss]))
    for k, size in enumerate(shape):  # onnxsim knows no other
        forward.graph.input[0].type.tensor_type.shape.dim[k].dim_value = size
    onnx.save(forward, folder / "forward.onnx")
    job = {"loss": loss, "weights": trainable(read), "targets": names}
    (folder / "job.json").write_text(json.dumps(job))


# ---------------------------------------------------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------------------------------------------------


class Worker:
    """A process that runs a step whenever it is asked to; growth: bytes; problem: why it cannot, or ""."""

    def __init__(self, python: Path | str, kind: str, folder: Path, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        self.process = subprocess.Popen(
            [str(python), common.TOOLS / "gradient_worker.py", kind, folder, str(threads)], text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        first = self._answer()
        self.growth, self.problem = first.get("growth"), first.get("problem", "")

    def run(self, words: str) -> list[float]:
        """Seconds, and processor seconds."""
        assert self.process.stdin
        self.process.stdin.write(words + "\n")
        answer: list[float] = self._answer()
        return answer

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"problem": f"ended with exit code {self.process.wait()}"}

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measured(name: str, source: Any, shape: tuple[int, ...], args: Any) -> dict[str, Any]:
    """The row of a network."""
    pythons = {"ours": sys.executable, "torch": args.torch or sys.executable}
    if args.onnxsim:
        pythons["onnxsim"] = args.onnxsim
    row: dict[str, Any] = {"network": name, "batch": shape, "threads": args.threads, "cpu": args.cpu}
    row |= {"load": os.getloadavg()[0], "problems": {}, "seconds": {}, "growth": {}}
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as at, ExitStack() as stack:
        folder = Path(at)
        write(folder, source, shape)
        workers: dict[str, Worker] = {}
        for kind, python in pythons.items():
            worker = Worker(python, kind, folder, args.threads)
            stack.callback(worker.close)
            if worker.problem:
                row["problems"][kind] = worker.problem
            else:
                workers[kind], row["growth"][kind] = worker, worker.growth
        row["seconds"] = timed(workers, args)
        if {"ours", "torch"} <= set(workers):
            found = {}
            for kind, words, key in (
                ("ours", "gradients", "ours"),
                ("torch", "gradients", "torch"),
                ("torch", "exact", "exact"),
            ):
                workers[kind].run(f"{words} {folder / key}.npz")
                with np.load(folder / f"{key}.npz") as file:
                    found[key] = {n: file[n].astype(np.float64) for n in file.files}
            row["difference"], row["theirs"] = (differences(found[kind], found["exact"]) for kind in ("ours", "torch"))
    return row


def timed(workers: dict[str, Worker], args: Any) -> dict[str, float]:
    """Median seconds of every job, which run in turns, in an order that changes."""
    jobs = [(kind, "step") for kind in workers]
    jobs += [("ours", words) for words in ("forward", "session")] if "ours" in workers else []
    times: dict[tuple[str, str], list[float]] = {job: [] for job in jobs}
    rng, spent, rounds = np.random.default_rng(0), 0.0, 0
    while rounds < ROUNDS or (spent < SECONDS and rounds < args.rounds):
        for k in rng.permutation(len(jobs)):
            seconds, cpu = workers[jobs[k][0]].run(jobs[k][1])
            spent += seconds
            if rounds:  # the first warms up
                times[jobs[k]].append(cpu if args.cpu else seconds)
        rounds += 1
    return {kind if words == "step" else words: float(np.median(t)) for (kind, words), t in times.items()}


def differences(ours: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]]) -> dict[str, float]:
    """Of every weight of either, the norm of the difference over that of theirs, or over the largest norm of all where
    a weight has next to no gradient."""
    least = 1e-6 * max(float(np.linalg.norm(g)) for g in theirs.values())
    out = {}
    for name, g in theirs.items():
        norm = float(np.linalg.norm(g))
        found = ours.get(name, np.zeros_like(g))
        out[name] = float(np.linalg.norm(found - g)) / max(norm, least)
    return out


def table(rows: Sequence[dict[str, Any]]) -> Any:
    """The rows as they are printed."""
    out = common.columns(
        "seconds of a training step",
        "-network -batch session forward step PyTorch onnxsim /session /forward /PyTorch /onnxsim MB PyTorch_MB "
        "/PyTorch difference PyTorch's load -over",
    )  # fmt: skip
    for r in rows:
        t, g = r["seconds"], r["growth"]
        worst = [max(r[key].values()) if key in r else None for key in ("difference", "theirs")]

        def over(a: str, b: str, t: dict[str, float] = t) -> float | None:
            return t[a] / t[b] if a in t and b in t else None

        ratios = {"PyTorch": over("ours", "torch"), "forward": over("ours", "forward")}
        ratios["memory"] = g["ours"] / g["torch"] if {"ours", "torch"} <= set(g) else None
        beyond = [what for what, v in ratios.items() if v is not None and v > BOUNDS[what]]

        def shown(v: float | None, digits: int = 2) -> str:
            return "-" if v is None else f"{v:.{digits}f}"

        seconds = [shown(t.get(k), 4) for k in ("session", "forward", "ours", "torch", "onnxsim")]
        out.add_row(
            r["network"], "x".join(map(str, r["batch"])), *seconds, shown(over("ours", "session")),
            shown(ratios["forward"]), shown(ratios["PyTorch"]), shown(over("ours", "onnxsim")),
            *(shown(g[k] / 1e6 if k in g else None, 0) for k in ("ours", "torch")), shown(ratios["memory"]),
            *("-" if v is None else f"{v:.1e}" for v in worst), f"{r['load']:.1f}", ", ".join(beyond),
        )  # fmt: skip
    return out


def main() -> int:
    p = common.parser(__doc__, rival=True)
    p.add_argument("--torch", type=Path, metavar="PYTHON", help="a python with torch and onnx (default: this one)")
    p.add_argument("--only", default="*", metavar="GLOB", help="networks by name")
    p.add_argument("--threads", type=int, default=2, metavar="N", help="of every tool (default 2)")
    p.add_argument("--rounds", type=int, default=60, metavar="N", help="at most (default 60)")
    p.add_argument("--cpu", action="store_true", help="processor time")
    p.add_argument("--resume", action="store_true", help="take over what the file of --json has")
    args = p.parse_args()
    if hasattr(os, "sched_setaffinity"):  # onnxsim's runtime asks for all that it sees
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.threads :])
    rows: list[dict[str, Any]] = []
    if args.resume and args.json and args.json.is_file():
        rows = json.loads(args.json.read_text(encoding="utf-8"))
    known = {r["network"] for r in rows}
    for name, (source, shape) in networks(args).items():
        if name in known or not fnmatch(name, args.only):
            continue
        common.say(name)
        rows.append(measured(name, source, shape, args))
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    shown = [r for r in rows if fnmatch(r["network"], args.only)]
    lines = [f"{r['network']}, {kind}: {why}" for r in shown for kind, why in r["problems"].items()]
    far = [f"{r['network']}: the gradient of {n} differs by {d:.1e}" for r in shown
           for n, d in r.get("difference", {}).items() if d > max(CLOSE, 2 * r["theirs"][n])]  # fmt: skip
    common.emit(args, [table(shown), *lines, *far], rows)
    return int(bool(far))


if __name__ == "__main__":
    sys.exit(main())
