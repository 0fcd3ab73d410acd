"""What could be pruned, and what is zero already, as data: the rows of `onnxprune inspect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from onnxprune.graph.energy import Energy, EnergyTable
from onnxprune.graph.peak import Peak
from onnxprune.page.units import show_bytes, show_joules
from onnxprune.report import pinned_dict
from onnxprune.sparsity.present import present
from onnxprune.structure.analysis import Analysis, ChannelGroup

LEAST = 0.01  # share of zeros from which on a layer is shown


def group_rows(analysis: Analysis) -> list[dict[str, Any]]:
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


def layer_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """One row per layer whose weight can be sparse: its zeros, patterns that hold, tiles that are mostly zero."""
    return [row.to_dict() for row in present(analysis.model)]


def layer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """`layer_rows` that have zeros, as a table; the caption counts the others."""
    shown = [r for r in rows if r["share"] >= LEAST]
    stored = " (--format csr, nm or bsr stores them)" if any(not r["reason"] for r in shown) else ""
    table = Table(title=f"zeros of the layers{stored}", title_justify="left", box=None, pad_edge=False)
    for column in ("node", "operator", "rows x columns", "zeros", "N:M", "zero tiles"):
        numeric = column in ("rows x columns", "zeros")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for r in shown:
        tiles = ", ".join(f"{t['tile']} {t['empty']:.0%}" for t in r["tiles"])
        shape = f"{r['rows']} x {r['columns']}"
        table.add_row(Text(r["node"]), r["op"], shape, f"{r['share']:.1%}", ", ".join(r["patterns"]), tiles)
    others = len(rows) - len(shown)
    if others:
        table.caption, table.caption_justify = f"{others} layers have no zeros, or hardly any", "left"
    return table


def energy_line(energy: Energy, table: EnergyTable) -> str:
    """The energy of a run in words, by its parts."""
    parts = f"arithmetic {show_joules(energy.arithmetic)}, weights from {energy.weights_from} "
    parts += f"{show_joules(energy.weights)}, tensors {show_joules(energy.activations)}"
    return f"energy of a run: {show_joules(energy.joules)} ({parts}), by a model: {table.source}"


def peak_line(peak: Peak) -> str:
    """The peak memory of a run in words, by its parts."""
    parts = f"weights {show_bytes(peak.weights)}, tensors {show_bytes(peak.tensors)} at {peak.node}"
    return f"peak memory of a run: {show_bytes(peak.bytes)} ({parts}), by a model"


def constraint(group: ChannelGroup) -> str:
    """The constraints of a group in words, "" for none: `equal in 4 blocks; 2 channels per unit`."""
    words = [f"equal in {len(b)} blocks" for b in group.blocks]
    if group.width > 1:
        words.append(f"{group.width} channels per unit")
    return "; ".join(words)


def to_dict(analysis: Analysis, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """What `onnxprune inspect --json` writes."""
    return {
        "model": str(analysis.model.path or ""),
        "groups": groups,
        "layers": layer_rows(analysis),
        "pinned": [pinned_dict(p) for p in analysis.pinned],
        "notes": [*analysis.model.notes, *analysis.notes],
        "folded": sorted(analysis.model.folds),
    }
