"""What could be pruned, as data: the rows of `onnxprune inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxprune.report import pinned_dict
from onnxprune.structure.groups import Analysis, ChannelGroup


def rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One row per group: share of parameters and MACs that would go with all but one of its units."""
    c = analysis.coupling
    costs = analysis.costs()
    whole = np.ones(c.size, bool)
    parameters, macs = max(costs.parameters(whole), 1.0), max(costs.macs(whole), 1.0)
    out = []
    for g in analysis.groups:
        without = analysis.keep_ids({g.name: np.zeros(g.size, bool)})
        out.append(
            {
                "name": g.name,
                "kind": g.kind,
                "size": g.size,
                "parameters_share": 1 - costs.parameters(without) / parameters,
                "macs_share": 1 - costs.macs(without) / macs,
                "constraint": constraint(g),
                "nodes": list(g.nodes),
                "names": list(g.names),
                "members": [{"tensor": s.tensor, "axis": s.axis} for s in g.slices],
            }
        )
    return out


def constraint(group: ChannelGroup) -> str:
    """Constraints in words."""
    words = [f"equal in {len(b)} blocks" for b in group.blocks]
    if group.width > 1:
        words.append(f"{group.width} channels per unit")
    return "; ".join(words)


def to_dict(analysis: Analysis, found: list[dict[str, Any]]) -> Mapping[str, Any]:
    """What `onnxprune inspect --json` writes."""
    return {
        "model": str(analysis.model.path or ""),
        "groups": found,
        "pinned": [pinned_dict(p) for p in analysis.pinned],
        "notes": [*analysis.model.notes, *analysis.notes],
    }
