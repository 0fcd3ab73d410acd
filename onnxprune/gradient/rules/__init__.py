"""One gradient per ONNX operator, one file per family; every file here is read, so that a new one is just added."""

import importlib
import pkgutil

from onnxprune.gradient.registry import GRADIENTS, NO_GRADIENTS, NOT_YET

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["GRADIENTS", "NOT_YET", "NO_GRADIENTS"]
