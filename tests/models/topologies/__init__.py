"""Small ONNX models, one per topology that a structural pruner has to survive.

`TOPOLOGIES` maps a name to a builder without arguments. Every model passes the checker's full check and runs in
onnxruntime on `random_feeds(model)`. Those of `UNRUNNABLE` only pass the check: onnxruntime has no kernel for them.
Those of `UNCHECKED` only run: the full check refuses them or their folded form, although such files exist.
`PRUNES[name]` says whether some group of plain channels (filters, FFN neurons, recurrent hidden units; not attention
heads, not the width of a residual stream behind a normalisation) is removable in that model.

The graphs mimic what exporters write: PyTorch's Shape - Gather - Unsqueeze - Concat - Reshape with a dynamic batch,
Constant nodes for small constants and initializers for weights; tf2onnx's NHWC with Transposes. `folded(model)` gives
the second form in which such models circulate: constants folded, BatchNormalization fused.
"""

from __future__ import annotations

import importlib
import pkgutil

from models.builder import folded, random_feeds
from models.topologies.registry import PRUNES, TOPOLOGIES, UNCHECKED, UNRUNNABLE

for module in pkgutil.iter_modules(__path__):  # each family registers its own
    importlib.import_module(f"{__name__}.{module.name}")

__all__ = ["PRUNES", "TOPOLOGIES", "UNCHECKED", "UNRUNNABLE", "folded", "random_feeds"]
