"""Small transformers, one per way in which exporters write them, with the groups that a pruner should find in each.

`TRANSFORMERS` maps a name to a `Form`. Every model runs in onnxruntime on `feeds(form)` unless `runs` is False, and
passes the checker's full check unless `checked` is False. Sizes that mean different things differ, as far as the
architecture lets them: batch 2, time 6, heads 4, dimensions of a head 8, feed-forward width 48, vocabulary 20, and a
residual stream of 40 where it may differ from heads times their dimensions (32).
"""

from __future__ import annotations

import importlib
import pkgutil

from models.forms.form import TRANSFORMERS, Form, feeds

for module in pkgutil.iter_modules(__path__):  # each family registers its own
    importlib.import_module(f"{__name__}.{module.name}")

__all__ = ["TRANSFORMERS", "Form", "feeds"]
