"""A plan: which units of every group stay. It can be saved as JSON and replayed to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import __version__
from onnxprune.errors import OptionError
from onnxprune.graph.fingerprint import fingerprint
from onnxprune.graph.io import Model
from onnxprune.graph.step import Step
from onnxprune.recovery.recover import RECOVERIES
from onnxprune.sparsity.outcome import Sparsity, from_plan
from onnxprune.structure.analysis import Analysis, Keep

VERSION = 1


@dataclass(frozen=True, eq=False)
class Plan:
    """keep: group name -> bool `(size,)`; recover: how the loss is compensated; settings: how the plan came about;
    sparsity: solver, pattern, and zeros and format of every layer, where weights became sparse; fingerprint: of the
    model that it was made for, "" in plans of version 0.5."""

    keep: Mapping[str, Keep]
    recover: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    sparsity: Mapping[str, Any] | None = None
    fingerprint: str = ""

    def to_json(self) -> str:
        """Kept indices of every group, one line each; sizes guard against another model."""
        groups = {
            name: {"size": len(keep), "kept": [int(i) for i in np.flatnonzero(keep)]}
            for name, keep in self.keep.items()
        }
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(g)}" for name, g in groups.items())
        fields = {"onnxprune_plan": VERSION, "model": self.fingerprint, "recover": self.recover}
        fields |= {"settings": dict(self.settings)}
        head = json.dumps(fields | ({"sparsity": dict(self.sparsity)} if self.sparsity else {}))
        return f'{head[:-1]}, "groups": {{\n{lines}\n}}}}\n'

    @staticmethod
    def from_json(text: str, analysis: Analysis, where: str = "the plan", *, another: bool = False) -> Plan:
        """Read a plan and check that it fits the analysed model; raises `OptionError`.

        another: it may have been made for another model, as long as its groups are there.
        """
        try:
            data = json.loads(text)
            groups = {k: (index(v["size"]), [index(i) for i in v["kept"]]) for k, v in data["groups"].items()}
            version, recover, settings = data["onnxprune_plan"], data["recover"], dict(data.get("settings", {}))
            sparse, mark = data.get("sparsity"), str(data.get("model", ""))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise OptionError(f"{where}: not a plan that onnxprune --save-plan wrote ({type(e).__name__}: {e})") from e
        if version != VERSION or recover not in RECOVERIES:
            raise OptionError(
                f"{where}: plan version {version} with recovery {recover!r}; this onnxprune reads {VERSION}"
            )
        known = {g.name: g for g in analysis.groups}
        keep: dict[str, Keep] = {}
        for name, (size, kept) in groups.items():
            if name in known and known[name].size == size:
                inside = not kept or (min(kept) >= 0 and max(kept) < size)
                if not inside or len(set(kept)) != len(kept) or not (kept or known[name].kind == "layers"):
                    within = f"1 to {size} different units in 0..{size - 1}"
                    raise OptionError(f"{where}: group {name!r} must keep {within}")
            keep[name] = np.zeros(max(size, 0), bool)
            keep[name][[i for i in kept if 0 <= i < size]] = True
        cluster = settings.get("cluster")
        if cluster is not None and not _clusters(cluster):
            raise OptionError(
                f"{where}: its clusters are not what onnxprune wrote; expected a number of values k, or weights with "
                "one each"
            )
        plan = Plan(keep, recover, settings, None if sparse is None else from_plan(sparse, where), mark)
        return plan.checked(analysis, where, another=another)

    def checked(self, analysis: Analysis, where: str, *, another: bool = False) -> Plan:
        """The plan, if it fits the analysed model; raises `OptionError`. another: as in `from_json`."""
        self.belongs(fingerprint(analysis.model), another=another, where=where)
        if self.recover not in RECOVERIES:
            raise OptionError(f"{where}: recovery {self.recover!r} is unknown; it is one of {', '.join(RECOVERIES)}")
        known = {g.name: g for g in analysis.groups}
        for name, keep in self.keep.items():
            group = known.get(name)
            if group is None or group.size != len(keep):
                there = "no such group" if group is None else f"{group.size} units"
                raise OptionError(f"{where}: group {name!r} has {len(keep)} units in the plan, the model has {there}")
            if not keep.any() and group.kind != "layers":
                raise OptionError(f"{where}: group {name!r} must keep 1 to {group.size} different units")
            for counts in group.blocks:
                per_block = counts @ keep
                if (per_block != per_block[0]).any():
                    raise OptionError(f"{where}: group {name!r} must keep the same number of units in every block")
        return self

    @staticmethod
    def load(path: str | Path, analysis: Analysis, *, another: bool = False) -> Plan:
        """Read a plan file, as `from_json` does; raises `OptionError`."""
        return Plan.from_json(_text(path), analysis, f"--plan {path}", another=another)

    @staticmethod
    def settings_in(path: str | Path) -> dict[str, Any]:
        """How the plan in a file came about, as far as that can be read: `load` says what is wrong with it."""
        try:
            return dict(json.loads(_text(path))["settings"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}

    def belongs(self, mark: str, *, another: bool, where: str) -> list[str]:
        """Notes where the plan was not made for the model with the fingerprint `mark`.

        Raises `OptionError` for a plan of another model, unless `another` allows it, and where there is none to allow.
        """
        if not self.fingerprint and another:
            raise OptionError(
                f"--plan-for-another-model has no effect here: {where} does not say which model it is for"
            )
        if not self.fingerprint:
            return [f"{where} is of version 0.5 or older and does not say which model it was made for"]
        if self.fingerprint == mark and another:
            raise OptionError(f"--plan-for-another-model has no effect here: {where} was made for this model")
        if self.fingerprint == mark:
            return []
        if not another:
            raise OptionError(
                f"{where} was made for another model (fingerprint {self.fingerprint}, this one has {mark}); make a "
                f"plan for this one, or replay it all the same with --plan-for-another-model"
            )
        return [f"{where} was made for another model; it was replayed since --plan-for-another-model says so"]


def _clusters(said: Any) -> bool:
    """Whether a plan's clusters are what this writes; how many values there may be is checked where they are made."""
    if not isinstance(said, Mapping):
        return False
    values = said.get("weights", {"": said.get("k")})
    return isinstance(values, Mapping) and bool(values) and all(type(k) is int for k in values.values())


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise OptionError(f"--plan {path}: cannot be read ({getattr(e, 'strerror', None) or e})") from e


PRUNING, PRODUCER = "onnxprune.pruning", "onnxprune.producer"  # keys of the file's metadata


def stamp(model: Model, original: Model, plan: Plan, analysis: Analysis, sparsity: Sparsity | None) -> Step[None]:
    """The model with its producer and what was done to it in its metadata; the same plan gives the same words."""
    removed: dict[str, list[int]] = {}
    for g in analysis.groups:
        if g.name in plan.keep:
            gone, total = removed.get(g.kind, [0, 0])
            removed[g.kind] = [gone + int((~plan.keep[g.name]).sum()), total + g.size]
    done: dict[str, Any] = {"asked": plan.settings.get("asked", {}), "recover": plan.recover, "removed": removed}
    if sparsity is not None:
        done |= {"zeros": [sparsity.zeros, sparsity.size], "format": sparsity.format}
    out = model.copy()
    before = {p.key: p.value for p in out.proto.metadata_props}
    maker = f"{original.proto.producer_name} {original.proto.producer_version}".strip()
    values = {PRODUCER: before.get(PRODUCER, maker), PRUNING: json.dumps(done, separators=(",", ":"))}
    for k in reversed([k for k, p in enumerate(out.proto.metadata_props) if p.key in values]):
        del out.proto.metadata_props[k]
    for key, value in values.items():
        out.proto.metadata_props.add(key=key, value=value)
    out.proto.producer_name, out.proto.producer_version = "onnxprune", str(__version__)
    return Step(out, None)
