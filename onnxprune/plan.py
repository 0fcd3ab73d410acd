"""A plan: which units of every group stay. It can be saved as JSON and replayed to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.errors import OptionError
from onnxprune.sparsity.stage import from_plan
from onnxprune.structure.groups import Analysis, Keep

VERSION = 1
RECOVERIES = ("least-squares", "mean-std", "batchnorm", "bias", "none")


@dataclass(frozen=True, eq=False)
class Plan:
    """keep: group name -> bool `(size,)`; recover: how the loss is compensated; settings: how the plan came about;
    sparsity: solver, pattern, and zeros and format of every layer, where weights became sparse."""

    keep: Mapping[str, Keep]
    recover: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    sparsity: Mapping[str, Any] | None = None

    def to_json(self) -> str:
        """Kept indices of every group, one line each; sizes guard against another model."""
        groups = {
            name: {"size": len(keep), "kept": [int(i) for i in np.flatnonzero(keep)]}
            for name, keep in self.keep.items()
        }
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(g)}" for name, g in groups.items())
        fields = {"onnxprune_plan": VERSION, "recover": self.recover, "settings": dict(self.settings)}
        head = json.dumps(fields | ({"sparsity": dict(self.sparsity)} if self.sparsity else {}))
        return f'{head[:-1]}, "groups": {{\n{lines}\n}}}}\n'

    @staticmethod
    def from_json(text: str, analysis: Analysis, where: str = "the plan") -> Plan:
        """Read a plan and check that it fits the analysed model; raises `OptionError`."""
        try:
            data = json.loads(text)
            groups = {k: (index(v["size"]), [index(i) for i in v["kept"]]) for k, v in data["groups"].items()}
            version, recover, settings = data["onnxprune_plan"], data["recover"], dict(data.get("settings", {}))
            sparse = data.get("sparsity")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise OptionError(f"{where}: not a plan that onnxprune --save-plan wrote ({type(e).__name__}: {e})") from e
        if version != VERSION or recover not in RECOVERIES:
            raise OptionError(
                f"{where}: plan version {version} with recovery {recover!r}; this onnxprune reads {VERSION}"
            )
        sizes = {g.name: g.size for g in analysis.groups}
        keep: dict[str, Keep] = {}
        for name, (size, kept) in groups.items():
            if sizes.get(name) != size:
                found = f"{sizes[name]} units" if name in sizes else "no such group"
                raise OptionError(f"{where}: group {name!r} has {size} units in the plan, the model has {found}")
            if analysis.group(name).kind == "layers" and not kept:
                keep[name] = np.zeros(size, bool)
                continue
            if not kept or min(kept) < 0 or max(kept) >= size or len(set(kept)) != len(kept):
                raise OptionError(f"{where}: group {name!r} must keep 1 to {size} different units in 0..{size - 1}")
            keep[name] = np.isin(np.arange(size), kept)
            for counts in analysis.group(name).blocks:
                per_block = counts @ keep[name]
                if (per_block != per_block[0]).any():
                    raise OptionError(f"{where}: group {name!r} must keep the same number of units in every block")
        return Plan(keep, recover, settings, None if sparse is None else from_plan(sparse, where))

    @staticmethod
    def load(path: str | Path, analysis: Analysis) -> Plan:
        """Read a plan file; raises `OptionError`."""
        return Plan.from_json(_text(path), analysis, f"--plan {path}")

    @staticmethod
    def settings_in(path: str | Path) -> dict[str, Any]:
        """How the plan in a file came about, as far as that can be read: `load` says what is wrong with it."""
        try:
            return dict(json.loads(_text(path))["settings"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise OptionError(f"--plan {path}: cannot be read ({getattr(e, 'strerror', None) or e})") from e
