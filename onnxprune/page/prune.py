"""The page of a pruning: asked and got, before and after, what every layer lost, what it cost, what could not go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.options import shown
from onnxprune.page.charts import damage_at, damage_curves, damage_map
from onnxprune.page.content import Cell, Chart, Page, Section, Table, Tile, Tone, lines_of, section, tiles_of
from onnxprune.page.units import show_bytes, show_joules, show_number, show_seconds, show_share
from onnxprune.runtime.timing import SESSIONS
from onnxprune.training.outcome import judged

FRACTIONS = (0.1, 0.2, 0.3, 0.5, 0.7)  # removed of a group, the columns of a table of damage
LATENCY = "latency_seconds"
FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (  # key of a cost, with a dot inside of a part of it
    ("parameters", "Parameters", show_number), ("macs", "MACs per run", show_number), ("bytes", "File", show_bytes),
    (LATENCY, "Latency", show_seconds), ("energy.joules", "Energy of a run (model)", show_joules),
    ("memory.bytes", "Peak memory (model)", show_bytes),
    ("memory.measured", "Peak memory (measured)", show_bytes),
)  # fmt: skip
Report = Mapping[str, Any]


def prune(report: Report) -> Page:
    """The page of `onnxprune MODEL`. report: as `Report.to_dict` has it."""
    name = Path(report["model"]).name or "The model"
    to = f", written to {report['output']}" if report["output"] else ""
    lead = f"{report['model'] or 'A model that was no file'}{to}"
    done = "planned" if report["after"]["bytes"] is None else "pruned"
    return Page(f"{name}, {done}", lead, (
        section("In short", tiles_of(_tiles(report))),
        section("Asked and got", _asked(report)),
        section("Before and after", _figures(report)),
        section("Checks", lines_of(_checks(report))),
        section(
            "Layers", lines_of(_stored(report)), _layers(report["layers"]), _groups(report),
            _clusters(report["codebooks"]),
        ),
        sensitivity_section(report["levels"], "Sensitivity", _damage(report)),
        changed_section(report["evaluation"]),
        section("Pinned", *_pinned(report["pinned"]), lead="Axes of weights that cannot be cut, and why."),
        section("Notes", lines_of([*report["notes"], *(report["verification"] or {}).get("notes", ())])),
        section("Time", lines_of(_stages(report["seconds"]))),
    ))  # fmt: skip


def _tiles(report: Report) -> Iterator[Tile]:
    before, after = report["before"], report["after"]
    for key, label, show in FIGURES:
        a, b = _figure(before, key), _figure(after, key)
        if a and b is not None:
            left = "" if key == LATENCY else " left"
            yield Tile(label, show_share(b / a) + left, f"{show(a)} → {show(b)}", b / a, _speed_tone(key, after))
    if (e := report["evaluation"]) is not None:
        yield Tile(e["metric"], f"{e['after']:.4f}", f"was {e['before']:.4f}{_sure(e)}")
    elif (f := report["fidelity"]) is not None and f["agreement"] is not None:
        yield Tile("Same answer as the original", show_share(f["agreement"]), f"of {f['samples']} samples")


def _speed_tone(key: str, after: Report) -> Tone:
    interval = after["latency_ratio_interval"]
    if key != LATENCY or interval is None:
        return ""
    return "good" if interval[1] < 1 - SESSIONS else "bad" if interval[0] > 1 + SESSIONS else ""


def _sure(e: Report) -> str:
    return "" if e["bound"] is None else f", at most {e['bound']:.4f} worse ({e['confidence']:.0%} confidence)"


def _asked(report: Report) -> Table | None:
    rows = []
    for g in report["got"]:
        got = show_share(g["got"]) if g["unit"].startswith("%") else show_number(g["got"])
        rows.append((g["option"], shown(g["asked"]), f"{got} {g['unit'].removeprefix('%').strip()}", g["why"]))
    if not rows:
        return None
    whys = any(why for *_, why in rows)
    columns = ("option", "asked", "got", *["why it is another"] * whys)
    return Table.of("What was asked for, and what came out", columns, (), (row[: len(columns)] for row in rows))


def _figures(report: Report) -> Table:
    before, after = report["before"], report["after"]
    rows: list[tuple[Cell | str, ...]] = []
    for key, label, show in FIGURES:
        a, b = _figure(before, key), _figure(after, key)
        if a is not None:
            share = None if b is None or not a else b / a
            left = Cell("-" if share is None else show_share(share), share)
            rows.append((_of_runs(key, label, before), show(a), "-" if b is None else show(b), left))
    if after["latency_ratio"] is not None:
        low_high = after["latency_ratio_interval"]
        sure = "too few runs for an interval" if low_high is None else "{:.2f} to {:.2f}".format(*low_high)
        rows.append(("Time of a run over the original's, 90% interval", "1", sure, f"{after['latency_ratio']:.2f}"))
    if (e := report["evaluation"]) is not None:
        change = (e["after"] - e["before"]) or 0.0
        rows.append((f"{e['metric']}, change", f"{e['before']:.4f}", f"{e['after']:.4f}", f"{change:+.4f}"))
    return Table.of("The original, and the model that is written", ("figure",), ("before", "after", "left"), rows)


def _figure(cost: Report, key: str) -> float | None:
    """A figure of a cost; None where it was not measured."""
    part, _, name = key.partition(".")
    value: Any = cost[part]
    found: float | None = value[name] if name and value is not None else value
    return found


def _of_runs(key: str, label: str, cost: Report) -> str:
    if key != LATENCY:
        return label
    n = cost["threads"]
    return f"{label}, {n} thread{'s' * (n != 1)}, median of {cost['latency_runs']} runs"


def _checks(report: Report) -> Iterator[str]:
    v, s, c, f, e = (report[key] for key in ("verification", "sparsity", "codebooks", "fidelity", "evaluation"))
    if v is not None:
        yield f"The pruned model equals the masked original to {v['error']:.1e} (allowed {v['tolerance']:.0e})."
    if s is not None and s["error"] is not None:
        yield f"The sparse model equals the masked one to {s['error']:.1e} of the largest output."
    if c is not None and c["checked"]:
        yield "The clustered model runs."
    if v is None and (s is None or s["error"] is None) and (c is None or not c["checked"]):
        yield "Not verified that the result computes what the masked original computes."
    if report["calibration"]:
        yield f"Calibrated on {report['calibration']}."
    done = [r for r in report["refitted"] if not r["reason"]]
    if done:
        was, now = (sum(r[key] for r in done) / len(done) for key in ("before", "after"))
        yield (
            f"{len(done)} layers that lost inputs were refitted ({report['recipe']['recover']}): unexplained variance "
            f"of their outputs {was:.1%} → {now:.1%} on average."
        )
    if (t := report["tuning"]) is not None:
        yield (
            f"Tuned by {t['steps']} steps of {t['batch']} samples; {judged(t['held_out'], t['copies'])} "
            f"{t['before']:.4g} → {t['after']:.4g}."
        )
    if f is not None:
        same = "" if f["agreement"] is None else f"the same class for {f['agreement']:.1%}, "
        far = f"squared error over variance {f['kl']:.3g}" if f["agreement"] is None else (
            f"KL divergence {f['kl']:.3g} nats"
        )  # fmt: skip
        kind = "made up" if f["synthetic"] else "that calibrated it" if f["seen"] else "that it has not seen"
        yield f"Outputs against the original's: {same}{far} ({f['samples']} samples {kind})."
    if e is not None:
        count = "" if e["samples"] is None else f" on {e['samples']} samples"
        yield f"{e['metric']}{count}: {e['before']:.4f} → {e['after']:.4f}, worse by {e['drop']:.4f}{_sure(e)}."
    else:
        yield "Accuracy was not measured; --evaluate SRC does."


def _stored(report: Report) -> Iterator[str]:
    """Zeros and clusters of all layers together, and how they are stored."""
    s, c = report["sparsity"], report["codebooks"]
    if s is not None:
        kinds = Counter(x["format"] for x in s["layers"]).most_common()
        yield (
            f"{show_share(s['zeros'] / max(s['weights'], 1))} of {show_number(s['weights'])} weights are zero "
            f"({s['pattern'] or 'unstructured'}, {s['solver']}); "
            + ", ".join(f"{n} layers {kind}" for kind, n in kinds)
        )
        for reason, n in Counter(x["reason"] for x in s["layers"] if x["reason"]).most_common():
            yield f"{n} layers stayed dense: {reason}"
        for reason, n in Counter(x["reason"] for x in s["untouched"]).most_common():
            yield f"{n} layers were not touched: {reason}"
    if c is not None:
        zipped = f"{show_bytes(c['zipped_before'])} → {show_bytes(c['zipped_after'])}"
        yield (
            f"Clustered to {c['values']} values per {c['per']}, {c['bits_per_weight']:.2f} bits per weight; "
            f"zipped {zipped}, the original file over {c['ratio']:.1f}"
        )


def _layers(layers: Sequence[Report]) -> Table | None:
    """What each lost; columns of zeros and of time where something is known."""
    if not layers:
        return None
    zeros = any(x["after"] and x["after"]["zeros"] > x["before"]["zeros"] for x in layers)
    timed = any(x["before"]["seconds"] is not None for x in layers)
    rows = []
    for x in layers:
        a, b = x["before"], x["after"]
        gone = b is None
        cells: list[Cell | str] = [x["node"], x["op"] + (", went" if gone else "")]
        cells += [_width(a["rows"], 0 if gone else b["rows"]), _width(a["columns"], 0 if gone else b["columns"])]
        if zeros:
            cells.append(Cell("-") if gone else _share(b["zeros"] / max(b["rows"] * b["columns"], 1)))
        if timed:
            cells += [_time(a["seconds"]), _time(None if gone else b["seconds"])]
        rows.append(cells)
    names = ["outputs", "inputs of each", *["zeros"] * zeros, *["time before", "time after"] * timed]
    return Table.of("Layers with weights, and what each lost", ("node", "operator"), names, rows)


def _width(before: int, after: int) -> Cell:
    if before == after:
        return Cell(str(before))
    return Cell(f"{before} → {after}", after / before)


def _share(x: float) -> Cell:
    return Cell(show_share(x), x)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else show_seconds(seconds)


def _groups(report: Report) -> Table | None:
    rows = [
        (g["name"], g["kind"], _width(g["size"], g["kept"]), show_share(1 - g["kept"] / g["size"]))
        for g in report["groups"] if g["kept"] < g["size"]
    ]  # fmt: skip
    if not rows:
        return None
    caption = f"Groups that lost units: {len(rows)} of {len(report['groups'])}"
    return Table.of(caption, ("group", "kind"), ("units", "removed"), rows)


def _clusters(codebooks: Report | None) -> Table | None:
    if codebooks is None:
        return None
    rows = [
        (r["weight"], r["storage"], str(r["k"]), f"{r['bits_per_weight']:.2f}", f"{r['error']:.2g}")
        for r in codebooks["weights"]
    ]
    names = ("values", "bits per weight", "relative error")
    return Table.of("Weights that are indices into codebooks", ("weight", "stored as"), names, rows)


def _damage(report: Report) -> str:
    """What damage is, where levels were measured."""
    by_layers = report["recipe"] is not None and report["recipe"]["allocate"] == "error"
    what = "error of the layers that read a group" if by_layers else "what the outputs suffer"
    return f"The level database: {what} when this group alone is cut. Framed, and dotted: what was chosen."


def sensitivity_section(groups: Sequence[Report], heading: str, lead: str) -> Section:
    """What each group costs at each level, as a map and as a table with a curve for each."""
    groups = [g for g in groups if len(g["kept"]) > 1]
    if not groups:
        return section(heading)
    curves = damage_curves(groups)
    rows = []
    for g, curve in zip(groups, curves, strict=True):
        numbers = (_small(damage_at(g, f)) for f in FRACTIONS)
        chosen = [f"{g['size']} → {g['chosen']}"] if "chosen" in g else []
        share = [show_share(g["macs_share"])] if "macs_share" in g else []
        rows.append((g["name"], Cell(svg=curve), *share, *chosen, *numbers))
    first = groups[0]
    names = [*["MACs"] * ("macs_share" in first), *["units"] * ("chosen" in first), *(f"-{f:.0%}" for f in FRACTIONS)]
    table = Table.of("Damage when so much of one group alone is removed", ("group", "curve"), names, rows)
    return section(heading, Chart("Map of damage", damage_map(groups)), table, lead=lead)


def _small(x: float) -> str:
    return "<0.0001" if 0 < x < 1e-4 else f"{x:.4f}"


def changed_section(evaluation: Report | None) -> Section:
    """The samples that are answered in another way."""
    changed = None if evaluation is None else evaluation["changed"]
    if changed is None:
        return section("Changed answers")
    lead = f"{changed['count']} of {changed['answers']} answers are others than the original's"
    if changed["lost"] is not None and changed["count"]:
        lead += f" (right before: {changed['lost']}, right now: {changed['gained']})"
    first = changed["first"]
    if not first:
        return section("Changed answers", lines_of([f"{lead}."]))
    tokens, labelled = first[0]["position"] is not None, first[0]["label"] is not None
    rows: list[tuple[Cell | str, ...]] = []
    for c in first:
        right = labelled and c["before"] == c["label"], labelled and c["after"] == c["label"]
        answers = (Cell(str(c[k]), tone=_tone(labelled, r)) for k, r in zip(("before", "after"), right, strict=True))
        kind = ["lost" if right[0] else "gained" if right[1] else "wrong both times"] * labelled
        rows.append((str(c["sample"]), *kind, *[str(c["position"])] * tokens, *[str(c["label"])] * labelled, *answers))
    names = [*["position"] * tokens, *["label"] * labelled, "before", "after"]
    caption = f"Samples whose answer changed: the first {len(first)}" if len(first) < changed["count"] else (
        "Samples whose answer changed"
    )  # fmt: skip
    table = Table.of(caption, ("sample", *["what became of it"] * labelled), names, rows)
    return section("Changed answers", table, lead=f"{lead}. Samples are counted from 0; answers are classes.")


def _tone(labelled: bool, right: bool) -> Tone:
    return ("good" if right else "bad") if labelled else ""


def _pinned(pinned: Sequence[Report]) -> Iterator[Table]:
    if not pinned:
        return
    reasons = Counter(p["reason"] if p["op"] == "graph" else f"{p['reason']} ({p['op']})" for p in pinned)
    if len(reasons) < len(pinned):
        yield Table.of("Reasons", ("reason",), ("weights",), ((r, str(n)) for r, n in reasons.most_common()))
    rows = ((p["tensor"], p["op"], p["node"], p["reason"], str(p["axis"]), str(p["size"])) for p in pinned)
    yield Table.of("Pinned axes", ("weight", "operator", "node", "reason"), ("axis", "size"), rows)


def _stages(seconds: Mapping[str, float]) -> Iterator[str]:
    stages = {stage: s for stage, s in seconds.items() if stage != "expected"}
    if stages:
        yield f"{sum(stages.values()):.1f} s in all: " + ", ".join(f"{k} {s:.2f} s" for k, s in stages.items()) + "."


__all__ = ["changed_section", "prune", "sensitivity_section"]
