"""Small models, one per rule and form, on which every gradient is tried; every file here is read."""

import importlib
import pkgutil

from models.gradients.row import ROWS, Row

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ROWS", "Row"]
