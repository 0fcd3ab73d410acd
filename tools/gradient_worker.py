"""One training step by one tool, run whenever a line comes in. Runs in that tool's own environment, see
bench_gradient.py.

    python gradient_worker.py ours|torch|onnxsim FOLDER THREADS

FOLDER holds model.onnx, forward.onnx (with the loss, all shapes fixed), feeds.npz, targets.npz and job.json. The first
line that is printed is `{"growth": bytes}` of resident memory from before the step was made to the highest of WARM
steps, or `{"problem": "..."}`. Then every line that is read names what to run: `step`, `forward`, `session` (the last
two of ours alone), or `gradients FILE`, which writes the gradients by the names of the weights (`exact FILE`: PyTorch's
in float64). The answer is `[seconds, processor seconds]`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM = 3  # steps before any is timed
Jobs = dict[str, Callable[..., object]]


def resident(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    return 0


def arrays(path: Path) -> dict[str, Any]:
    """The arrays of an npz file."""
    import numpy as np

    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def save(path: str, found: dict[str, Any]) -> None:
    """Arrays into an npz file."""
    import numpy as np

    np.savez(path, allow_pickle=False, **found)


# ---------------------------------------------------------------------------------------------------------------------
# Ours
# ---------------------------------------------------------------------------------------------------------------------


def ours(folder: Path, threads: int) -> Callable[[], Jobs]:
    """The session of training/step.py, its loss alone, and the model in an ordinary session."""
    import common
    from onnxprune.graph.io import load
    from onnxprune.graph.ort import base_options
    from onnxprune.training.losses import Objective, Target
    from onnxprune.training.native import missing
    from onnxprune.training.step import Step

    feeds, targets = arrays(folder / "feeds.npz"), arrays(folder / "targets.npz")
    why = missing(base_options())  # the library with its compiler is loaded before, as PyTorch is
    if why:
        raise RuntimeError(why)

    def make() -> Jobs:
        model = load(folder / "model.onnx")
        step = Step(model, Objective(tuple(Target(name, "kl") for name in targets)), feeds, threads=threads)
        plain: list[Any] = []

        def session() -> None:
            if not plain:
                plain.append(common.session(folder / "model.onnx", threads))
            plain[0].run(None, feeds)

        def gradients(path: str) -> None:
            step.train(feeds, targets)
            save(path, {name: step.layout.view(step.gradients, name) for name in step.layout.places})

        return {
            "step": lambda: step.train(feeds, targets), "forward": lambda: step.loss(feeds, targets),
            "session": session, "gradients": gradients,
        }  # fmt: skip

    return make


# ---------------------------------------------------------------------------------------------------------------------
# onnxsim
# ---------------------------------------------------------------------------------------------------------------------


def onnxsim(folder: Path, threads: int) -> Callable[[], Jobs]:
    """Its training loop with sgd_momentum, the update within; threads are those that the process may use."""
    import onnx
    from onnxsim.compile_training import compile_training_loop

    job = json.loads((folder / "job.json").read_text())
    feeds = arrays(folder / "feeds.npz") | {job["targets"][n]: x for n, x in arrays(folder / "targets.npz").items()}

    def make() -> Jobs:
        model = onnx.load(folder / "forward.onnx")
        loop = compile_training_loop(model, job["loss"], job["weights"], optimizer="sgd_momentum")
        return {"step": lambda: loop(feeds, 1e-6)}

    return make


# ---------------------------------------------------------------------------------------------------------------------
# PyTorch
# ---------------------------------------------------------------------------------------------------------------------


def torch(folder: Path, threads: int) -> Callable[[], Jobs]:
    """The model node by node, as one writes it in PyTorch: sizes are numbers, what depends on them alone is computed
    once, and Gelu is one function."""
    import torch

    from gradient_torch import Network

    torch.set_num_threads(threads)
    feeds = {n: torch.from_numpy(x) for n, x in arrays(folder / "feeds.npz").items()}
    targets = {n: torch.from_numpy(x) for n, x in arrays(folder / "targets.npz").items()}
    job = json.loads((folder / "job.json").read_text())

    def make(dtype: Any = torch.float32) -> Jobs:
        given, goal = ({n: x.to(dtype) if x.is_floating_point() else x for n, x in v.items()} for v in (feeds, targets))
        network = Network(folder / "model.onnx", given, job["weights"], dtype)

        def step() -> float:
            network.zero_grad()
            y = network(given)
            loss = sum(
                torch.nn.functional.kl_div(
                    torch.log_softmax(y[n].reshape(-1, y[n].shape[-1]), -1), t.reshape(-1, t.shape[-1]),
                    reduction="batchmean", log_target=True,
                )
                for n, t in goal.items()
            )  # fmt: skip
            loss.backward()
            return float(loss)

        def gradients(path: str) -> None:
            step()
            save(path, network.gradients())

        def exact(path: str) -> None:
            make(torch.float64)["gradients"](path)

        return {"step": step, "gradients": gradients, "exact": exact}

    return make


def main() -> None:
    kind, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        make = {"ours": ours, "torch": torch, "onnxsim": onnxsim}[kind](folder, threads)
        before = resident("VmRSS")
        jobs = make()
        for _ in range(WARM):
            jobs["step"]()
        print(json.dumps({"growth": resident("VmHWM") - before}), file=out)
    except Exception as e:  # of any tool, for a line in the table
        print(json.dumps({"problem": f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"}), file=out)
        return
    for line in sys.stdin:
        name, *words = line.split()
        start, cpu = time.perf_counter(), time.process_time()
        jobs[name](*words)
        print(json.dumps([time.perf_counter() - start, time.process_time() - cpu]), file=out)


if __name__ == "__main__":
    main()
