"""Run a sparse model from Python: python run.py MODEL [LIBRARY]

With onnxprune installed, no library is needed: `onnxprune.get_library_path()` has one. Without it, onnxruntime and the
library that `onnxprune export-library` wrote are enough.
"""

import sys

import numpy as np
import onnxruntime as ort

if len(sys.argv) > 2:
    library = sys.argv[2]
else:
    import onnxprune

    library = onnxprune.get_library_path()
options = ort.SessionOptions()
options.register_custom_ops_library(library)
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
feeds = {}
for i in session.get_inputs():
    shape = [d if isinstance(d, int) else 1 for d in i.shape]
    feeds[i.name] = np.zeros(shape, np.int64 if i.type == "tensor(int64)" else np.float32)
for output, value in zip(session.get_outputs(), session.run(None, feeds), strict=True):
    print(output.name, value.shape)
