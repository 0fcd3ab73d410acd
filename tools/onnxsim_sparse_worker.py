"""Make the weights of a model sparse with onnxsim. Runs in the rival's own environment, see bench_solvers.py.

    python onnxsim_sparse_worker.py IN.onnx OUT.onnx METHOD SETTING CALIBRATION.npz BATCH

METHOD names the function `apply_METHOD_pruning` (sparsegpt, wanda, magnitude), SETTING is a fraction of zeros or N:M.
Prints one line of JSON: seconds of the call and of its processor time, without imports, reading and writing.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import onnx
import onnxsim


def main() -> None:
    source, out, method, setting, calibration, batch = sys.argv[1:]
    model = onnx.load(source)
    with np.load(calibration) as file:
        samples = {name: file[name] for name in file.files}
    step, count = int(batch), len(next(iter(samples.values())))
    options: dict[str, Any] = {}
    if method != "magnitude":
        feeds = [{name: x[k : k + step] for name, x in samples.items()} for k in range(0, count, step)]
        options["calibration_data"] = feeds
    if ":" in setting:
        n, m = (int(x) for x in setting.split(":"))
        options |= {"n": n, "m": m}
    else:
        options["sparsity"] = float(setting)
    start, cpu = time.perf_counter(), time.process_time()
    model = getattr(onnxsim, f"apply_{method}_pruning")(model, **options)
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    onnx.save(model, out)
    print(f"\n{json.dumps(spent)}")


if __name__ == "__main__":
    main()
