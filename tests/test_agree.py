"""How stable importances are: rank correlations of scores against those of scores made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import onnxprune
from conftest import ROOT
from models.nets import Array, build, noise, normal
from onnxprune import OptionError
from onnxprune.cli.app import run
from onnxprune.experiments.agree import agreement
from onnxprune.structure.groups import analyze

MLP, DIGITS = ROOT / "models" / "digits_mlp.onnx", ROOT / "models" / "digits_mlp.npz"
X, LABELS = noise(24, 6, seed=3), np.arange(24) % 4
A, B, C = normal(6, 12), normal(12, 9, seed=1), normal(9, 4, seed=2)
NET = build("h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) s = Relu(k) y = MatMul(s, c)", "float[n,6]", "float[n,4]",
            a=A, b=B, c=C)  # fmt: skip
ASKED: dict[str, Any] = {"threads": 1}


def rectified(x: Array) -> tuple[Array, Array]:
    first = np.maximum(x.astype(np.float64) @ A, 0)
    return first, np.maximum(first @ B, 0)


def activations(x: Array) -> list[Array]:
    """Mean magnitude of every unit, over that of its layer."""
    means = [r.mean(0) for r in rectified(x)]
    return [m / m.mean() for m in means]


def taylor(x: Array, labels: Array) -> list[Array]:
    """Mean over samples of |r dL/dr|, by hand."""
    r, s = rectified(x)
    z = s @ C
    dz = np.exp(z) / np.exp(z).sum(1, keepdims=True) - np.eye(4)[labels]
    ds = dz @ C.T
    return [np.abs(r * ((ds * (s > 0)) @ B.T)).mean(0), np.abs(s * ds).mean(0)]


def expected(a: list[Array], b: list[Array]) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}
    for name, of in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        each = [of(x, y).statistic for x, y in zip(a, b, strict=True)]
        together = of(np.concatenate(a), np.concatenate(b)).statistic
        out[name] = {"mean": np.mean(each), "deviation": np.std(each, ddof=1), "together": together}
    return out


def test_scores_of_two_data_sets_and_of_two_importances() -> None:
    sets = [{"x": x, "labels": labels} for x, labels in ((X[:10], LABELS[:10]), (X[10:], LABELS[10:]))]
    report = onnxprune.agree(NET, calibration=sets, importance=["activation", "taylor"], **ASKED)
    data = [(X[:10], LABELS[:10]), (X[10:], LABELS[10:])]
    wanted = {
        "activation": expected(*(activations(x) for x, _ in data)), "taylor": expected(*(taylor(*d) for d in data)),
        "activation and taylor 1": expected(activations(data[0][0]), taylor(*data[0])),
        "activation and taylor 2": expected(activations(data[1][0]), taylor(*data[1])),
    }  # fmt: skip
    assert [(c["importances"], c["sets"]) for c in report["comparisons"]] == [
        (["activation", "activation"], ["set 1", "set 2"]), (["taylor", "taylor"], ["set 1", "set 2"]),
        (["activation", "taylor"], ["set 1", "set 1"]), (["activation", "taylor"], ["set 2", "set 2"]),
    ]  # fmt: skip
    for found, of in zip(report["comparisons"], wanted.values(), strict=True):
        assert found["units"] == 21 and [g["units"] for g in found["groups"]] == [12, 9]
        for name, summary in of.items():
            assert found[name] == pytest.approx(summary), (found["importances"], name)
    assert [s["labels"] for s in report["sets"]] == [True, True] and not report["notes"]


def test_halves_are_every_other_sample() -> None:
    halved = onnxprune.agree(NET, calibration=[{"x": X}], importance="activation", **ASKED)
    named = onnxprune.agree(NET, calibration=[{"x": X[::2]}, {"x": X[1::2]}], importance="activation", **ASKED)
    assert halved["comparisons"][0]["sets"] == ["half 1", "half 2"]
    for row in (halved["comparisons"][0], named["comparisons"][0]):
        row.pop("sets")
    assert halved["comparisons"] == named["comparisons"]
    assert halved["comparisons"][0]["spearman"] == pytest.approx(
        expected(activations(X[::2]), activations(X[1::2]))["spearman"]
    )  # fmt: skip


def test_what_is_the_same_on_all_data_is_compared_with_others_alone() -> None:
    report = onnxprune.agree(NET, calibration=[{"x": X}], importance=["l2", "synflow", "activation"], **ASKED)
    assert [c["importances"] for c in report["comparisons"] if c["sets"][0] != c["sets"][1]] == [["activation"] * 2]
    assert sum(c["importances"] == ["l2", "synflow"] for c in report["comparisons"]) == 2


def test_heads() -> None:
    """What a head's gate is worth, by differences in float64."""
    shapes = {"wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "wo": (8, 8), "w": (8, 3)}
    w: dict[str, Any] = {name: normal(*shape, seed=k) * 0.7 for k, (name, shape) in enumerate(shapes.items())}
    parts = " ".join(
        f"{n}0 = MatMul(x, w{n}) {n}1 = Reshape({n}0, split) {n} = Transpose<perm = {perm}>({n}1)"
        for n, perm in (("q", "[0,2,1,3]"), ("k", "[0,2,3,1]"), ("v", "[0,2,1,3]"))
    )
    nodes = (
        f"{parts} s = MatMul(q, k) p = Softmax<axis = -1>(s) c = MatMul(p, v) d = Transpose<perm = [0,2,1,3]>(c) "
        "e = Reshape(d, join) f = MatMul(e, wo) m = ReduceMean<axes = [1], keepdims = 0>(f) y = MatMul(m, w)"
    )
    net = build(nodes, "float[n,5,8]", "float[n,3]", split=np.array([0, 0, 4, 2]), join=np.array([0, 0, 8]), **w)
    x, labels = noise(30, 5, 8), np.arange(30) % 3

    def losses(gates: Array) -> Array:
        q, k, v = (np.einsum("nti,iho->ntho", x, w[name].reshape(8, 4, 2)) for name in ("wq", "wk", "wv"))
        a = np.exp(np.einsum("ntho,nsho->nhts", q, k))
        seen = np.einsum("nhts,nsho->ntho", a / a.sum(-1, keepdims=True), v) * gates[:, None]
        z = (seen.reshape(30, 5, 8) @ w["wo"]).mean(1) @ w["w"]
        return np.asarray(np.log(np.exp(z).sum(1)) - z[np.arange(30), labels])

    slopes = np.array([(losses(1 + 1e-5 * e) - losses(1 - 1e-5 * e)) / 2e-5 for e in np.eye(4)])  # (heads, samples)
    halves = [np.abs(slopes[:, k::2]).mean(1) for k in (0, 1)]
    report = onnxprune.agree(net, calibration=[{"x": x, "labels": labels}], importance="taylor", kind="heads", **ASKED)
    (row,) = report["comparisons"]
    assert [(g["kind"], g["units"]) for g in row["groups"]] == [("heads", 4)]
    assert row["spearman"]["together"] == pytest.approx(stats.spearmanr(*halves).statistic)
    assert row["kendall"]["mean"] == pytest.approx(stats.kendalltau(*halves).statistic)
    assert len(set(np.argsort(halves[0]))) == 4 and row["spearman"]["deviation"] == 0


def test_fisher_goes_by_labels_where_all_sets_have_them() -> None:
    with_labels, without = {"x": X, "labels": LABELS}, {"x": X}

    def of(*sets: Any) -> dict[str, Any]:
        return onnxprune.agree(NET, calibration=list(sets), importance="fisher", **ASKED)

    own, mixed, labelled = of(without), of(with_labels, without), of(with_labels)
    assert own["comparisons"][0]["spearman"] != labelled["comparisons"][0]["spearman"]
    assert mixed["comparisons"][0]["spearman"]["together"] == pytest.approx(1)  # the same samples, in the same way
    assert mixed["notes"] == ["fisher goes by the outputs' own distribution: set 2 has no labels"]
    assert not own["notes"] and not labelled["notes"]
    given = onnxprune.agree(NET, calibration=[{"x": X}], labels=[LABELS], importance="fisher", **ASKED)
    assert given["comparisons"] == labelled["comparisons"]


def test_units_that_cannot_be_told_apart() -> None:
    """Groups of two units have no order, and equal scores none either."""
    net = build("h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) s = Relu(k) y = MatMul(s, c)", "float[n,6]",
                "float[n,4]", a=normal(6, 2), b=normal(2, 9), c=normal(9, 4))  # fmt: skip
    groups = analyze(onnxprune.load(net)).groups
    small, large = sorted(groups, key=lambda g: g.size)
    found = agreement({large.name: np.ones(9), small.name: np.arange(2.0)},
                      {large.name: np.arange(9.0), small.name: np.arange(2.0)}, groups)  # fmt: skip
    assert [(w.group, w.coefficients["spearman"]) for w in found.groups] == [(large.name, None)]
    assert found.coefficients["spearman"].mean is None and found.units == 11
    missing = agreement({large.name: np.ones(9)}, {}, groups)
    assert missing.units == 0 and missing.coefficients["kendall"].together is None


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out, files = tmp_path / "net.onnx", tmp_path / "out.json", []
    model.write_bytes(NET.SerializeToString())
    for k in (0, 1):
        files += ["--calibration", str(tmp_path / f"{'ab'[k]}.npz")]
        np.savez(files[-1], x=X[k::2])
        np.save(tmp_path / f"{k}.npy", LABELS[k::2])
    labels = [w for k in (0, 1) for w in ("--labels", str(tmp_path / f"{k}.npy"))]
    words = ["agree", str(model), *files, *labels, "--importance", "snip", "--importance", "l1", "--threads", "1"]
    assert run([*words, "-v", "--json", str(out)]) == 0
    said, report = capsys.readouterr().out, json.loads(out.read_text())
    assert "snip: a.npz and b.npz" in said and "snip and l1: b.npz" in said and "group" in said
    with_labels = onnxprune.agree(model, calibration=[{"x": X, "labels": LABELS}], importance=["snip", "l1"], **ASKED)
    strip = lambda rows: [{k: v for k, v in row.items() if k != "sets"} for row in rows]  # noqa: E731
    assert strip(report["comparisons"]) == strip(with_labels["comparisons"])


REFUSED: dict[str, tuple[list[str], str]] = {
    "no data": (["--importance", "fisher"], "give --calibration SRC, twice for two data sets"),
    "no importance": (["--calibration", "X"], "for --importance NAME to say"),
    "another one": (["--calibration", "X", "--importance", "magic"], "--importance magic: unknown; choose one of"),
    "weights alone": (["--calibration", "X", "--importance", "l1"], "--importance l1 does not look at data"),
    "no labels": (["--calibration", "X", "--importance", "taylor"], "--importance taylor needs labels, and half 1 has"),
    "labels of one": (
        ["--calibration", "X", "--calibration", "X", "--labels", "X", "--importance", "fisher"], "1 for 2 data sets",
    ),
    "no such units": (["--calibration", "X", "--importance", "fisher", "--kind", "heads"], "has no such units; kinds"),
    "no such kind": (["--calibration", "X", "--importance", "fisher", "--kind", "arms"], "--kind arms: unknown"),
    "one sample": (["--calibration", "X", "--samples", "1", "--importance", "fisher"], "one sample has no halves"),
    "pictures": (["--calibration", "X", "--importance", "fisher", "--preset", "tf"], "--preset tf"),
    "other data": (["--calibration", str(DIGITS), "--importance", "fisher"], "expects (?, 6)"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, why = REFUSED[case]
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "net.onnx").write_bytes(NET.SerializeToString())
    assert run(["agree", str(tmp_path / "net.onnx"), *(str(tmp_path / "x.npy") if w == "X" else w for w in words)]) == 2
    captured = capsys.readouterr()
    assert why in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


def test_python_names_its_own_options() -> None:
    with pytest.raises(OptionError, match=r"importance='?taylor'? needs labels"):
        onnxprune.agree(NET, calibration=[{"x": X}], importance="taylor")
    with pytest.raises(TypeError, match="no option 'importances'"):
        onnxprune.agree(NET, calibration=[{"x": X}], importances="taylor")
