"""The latency table: what every part of a model took in every variant, on one device; as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxprune.errors import OptionError, UserError
from onnxprune.graph.arrays import Float
from onnxprune.latency.measure import device as device_of
from onnxprune.latency.parts import Part, owners, parts_of
from onnxprune.latency.variants import Kept
from onnxprune.structure.analysis import Analysis

VERSION = 1
SPREAD = 1.0  # of what the uncut model takes, over the median, above which a machine is too noisy
LEAST = 0.1  # of what the profiler says of a node, which it took at least
OPTION = "--latency-table"

Timed = Mapping[str, Any]  # of a variant, as `measure.measure` gives it


@dataclass(frozen=True)
class Device:
    """What a table holds for. threads: intra-op; provider: execution provider of onnxruntime."""

    cpu: str
    threads: int
    onnxruntime: str = ort.__version__
    provider: str = "CPUExecutionProvider"

    @staticmethod
    def here(threads: int, provider: str = "CPUExecutionProvider") -> Device:
        """This machine."""
        return Device(**device_of(threads, provider))

    def __str__(self) -> str:
        return f"{self.cpu}, {self.threads} thread{'s' * (self.threads != 1)}, {self.provider}"


@dataclass(frozen=True)
class Row:
    """node: of the uncut model that the time is counted for, with what is fused into it; operator: with the attributes
    that matter; method, sparsity: how its weight is stored, "dense" or a pattern of zeros; seconds of a run."""

    node: str
    operator: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    seconds: float
    method: str = "dense"
    sparsity: float = 0.0


@dataclass(frozen=True)
class Variant:
    """kept: group -> units; seconds: of a run of the whole; spread: of repetitions."""

    kept: Kept
    seconds: float
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """nodes: name and operator of what onnxruntime runs of the uncut model, in order; variants: the first is uncut;
    sparse: the uncut model with zeros in all weights; spread: how much the uncut model's time moved meanwhile."""

    fingerprint: str
    device: Device
    nodes: tuple[tuple[str, str], ...]
    variants: tuple[Variant, ...]
    spread: float
    sparse: tuple[Variant, ...] = ()

    @property
    def uncut(self) -> float:
        """Seconds of a run of the uncut model, the median of its sessions."""
        return float(np.median([v.seconds for v in self.variants if not v.kept]))

    def with_sparse(self, sparse: Sequence[Variant]) -> Table:
        """The table with these sparse variants."""
        return replace(self, sparse=tuple(sparse))

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps({"onnxprune_latency_table": VERSION, **asdict(self)}) + "\n"

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Table:
        """A table of what `dataclasses.asdict` made of one."""
        return Table(
            str(data["fingerprint"]),
            Device(**data["device"]),
            tuple((name, op) for name, op in data["nodes"]),
            tuple(map(variant_of, data["variants"])),
            float(data["spread"]),
            tuple(map(variant_of, data["sparse"])),
        )

    @staticmethod
    def from_json(text: str, where: str = OPTION) -> Table:
        """Raises `OptionError` for what is no table."""
        try:
            data = json.loads(text)
            if data.pop("onnxprune_latency_table") != VERSION:
                raise ValueError("of another version")
            return Table.from_dict(data)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise OptionError(
                f"{where}: expected a table of `onnxprune latency-table` ({type(e).__name__}: {e}); make it anew"
            ) from e

    @staticmethod
    def load(path: Path) -> Table:
        """Read a table; raises `OptionError`."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise OptionError(f"{OPTION} {path}: cannot be read ({getattr(e, 'strerror', None) or e})") from e
        return Table.from_json(text, f"{OPTION} {path}")

    def check(self, mark: str, device: Device, *, elsewhere: bool = False, where: str = OPTION) -> None:
        """Raises `OptionError` unless the table is of the model with the fingerprint `mark`, and of this device.

        elsewhere: it is of another device.
        """
        refuse_another(self.fingerprint, mark, where)
        ours, theirs = asdict(device), asdict(self.device)
        differing = [name for name in ("cpu", "threads", "provider", "onnxruntime") if ours[name] != theirs[name]]
        if elsewhere and not differing:
            raise OptionError(f"--elsewhere has no effect here: {where} was made on this machine; leave it out")
        if differing and not elsewhere:
            name = differing[0]
            raise OptionError(
                f"{where} was made for {name} {theirs[name]!r}, here it is {ours[name]!r}; make one here with "
                f"onnxprune latency-table, or say --elsewhere where it is that device that you prune for"
            )


def refuse_another(theirs: str, ours: str, where: str) -> None:
    """Raises `OptionError` where the fingerprints of two models differ."""
    if theirs != ours:
        raise OptionError(
            f"{where} was made for another model (fingerprint {theirs}, this one has {ours}); make one of this model "
            f"with onnxprune latency-table"
        )


def variant_of(data: Mapping[str, Any]) -> Variant:
    """A variant of what `dataclasses.asdict` made of one."""
    rows = [
        Row(**{**r, "inputs": tuple(map(tuple, r["inputs"])), "outputs": tuple(map(tuple, r["outputs"]))})
        for r in data["rows"]
    ]
    return Variant(dict(data["kept"]), float(data["seconds"]), tuple(rows))


def spread_of(runs: Sequence[Timed]) -> float:
    """Between the 10th and the 90th percentile of what the uncut model took, over the median; repetitions of a variant
    count as their median."""
    base = [float(np.median(r["base"])) for r in runs]
    low, middle, high = np.quantile(base, (0.1, 0.5, 0.9))
    return float((high - low) / middle)


def refuse_noise(spread: float) -> None:
    """Raises `UserError` where a machine is too noisy to measure."""
    if spread > SPREAD:
        raise UserError(
            f"this machine is too noisy to measure: the same model took times that differ by {spread:.0%} (at most "
            f"{SPREAD:.0%}); end what else runs, or give --repeat N, of which the medians count"
        )


def seconds_of(runs: Sequence[Timed]) -> Float:
    """Seconds of every variant, `(variants,)`: their ratios to the uncut model, which ran in turns with each, times
    what that took throughout."""
    uncut = float(np.median([np.median(r["base"]) for r in runs]))
    return np.array([np.median(np.divide(r["seconds"], r["base"])) for r in runs]) * uncut


def per_part(parts: Sequence[Part], runs: Sequence[Timed]) -> Float:
    """Seconds of every part in every variant, `(parts, variants)`; the sums are those of `seconds_of`.

    The profiler adds to every node alike: what its sums have too much, per node, is taken off.
    """
    whole = seconds_of(runs)
    if not runs[0]["nodes"]:  # the execution provider hides them
        return whole[None]
    place = {key: k for k, part in enumerate(parts) for key in part.keys}
    added = [(sum(s for _, _, s in r["nodes"]) - all_) / len(r["nodes"]) for r, all_ in zip(runs, whole, strict=True)]
    often = max(0.0, float(np.median(added)))
    out = np.zeros((len(parts), len(runs)))
    for v, run in enumerate(runs):
        for key, (_, _, seconds) in zip(owners(run["nodes"], place), run["nodes"], strict=True):
            out[place[key], v] += max(seconds - often, LEAST * seconds)
    return np.asarray(out * (whole / out.sum(0)))


def parts_of_table(analysis: Analysis, table: Table) -> tuple[list[Part], Float]:
    """The parts of the uncut model, and the seconds of each in every variant, `(parts, variants)`."""
    parts = parts_of(analysis, [(name, op, 0.0) for name, op in table.nodes])
    place = {part.label: k for k, part in enumerate(parts)}
    seconds = np.zeros((len(parts), len(table.variants)))
    for v, variant in enumerate(table.variants):
        for row in variant.rows:
            seconds[place[row.node], v] += row.seconds
    return parts, seconds
