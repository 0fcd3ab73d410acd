"""Zero-cost proxies against plain computations of small networks, and how they are correlated with scores."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from onnxprune.cli.proxies import PROXIES as OPTIONS
from onnxprune.experiments.proxies import PROXIES, Network, synflow
from onnxprune.experiments.ranks import COEFFICIENTS, bootstrap, kendall, spearman
from onnxprune.graph.io import load

MLP, DIGITS = ROOT / "models" / "digits_mlp.onnx", ROOT / "models" / "digits_mlp.npz"


# one hidden layer, w1 (12, 5) and w2 (3, 12): everything by hand, in float64

X, LABELS = noise(8, 5, seed=4), np.arange(8) % 3
W1, W2 = normal(12, 5) * 0.7, normal(3, 12, seed=1) * 0.6
B1 = normal(12, seed=2) * 0.1
NET = build(
    "h = Gemm<transB = 1>(x, w1, b1) r = Relu(h) z = Gemm<transB = 1>(r, w2) y = Softmax<axis = 1>(z)",
    "float[n,5]", "float[n,3]", w1=W1, w2=W2, b1=B1,
)  # fmt: skip


def slopes(w1: Array, w2: Array, x: Array = X, labels: Array = LABELS) -> tuple[Array, Array, Array, Array]:
    """Activations before the rectifier, class scores, and what the mean loss loses by each, times the samples."""
    h = x.astype(np.float64) @ w1.T + B1
    z = np.maximum(h, 0) @ w2.T
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    dz = p - np.eye(3)[labels]
    return h, z, dz @ w2 * (h > 0), dz


def gradient(w1: Array, w2: Array, x: Array = X, labels: Array = LABELS) -> tuple[Array, Array]:
    """Of the mean loss."""
    h, _, dh, dz = slopes(w1, w2, x, labels)
    return dh.T @ x / len(x), dz.T @ np.maximum(h, 0) / len(x)


def by_hand_grasp() -> float:
    g, e = gradient(W1, W2), 1e-5
    ahead, behind = (gradient(W1 + s * e * g[0], W2 + s * e * g[1]) for s in (1, -1))
    return -sum(float((w * (a - b)).sum()) for w, a, b in zip((W1, W2), ahead, behind, strict=True)) / (2 * e)


def by_hand_zico() -> float:
    parts = [gradient(W1, W2, X[k : k + 4], LABELS[k : k + 4]) for k in (0, 4)]
    total = 0.0
    for a, b in zip(*parts, strict=True):
        deviation = np.abs(a - b) / 2
        steady = ((np.abs(a) + np.abs(b)) / 2)[deviation > 0] / deviation[deviation > 0]
        total += np.log(steady.sum())
    return total


def by_hand_fisher() -> float:
    h, z, dh, dz = slopes(W1, W2)
    return float(((h * dh) ** 2).mean(0).sum() + ((z * dz) ** 2).mean(0).sum()) / 2


def by_hand_jacob_cov() -> float:
    h, *_ = slopes(W1, W2)
    v = np.linalg.eigvalsh(np.corrcoef(((h > 0) * W2.sum(0)) @ W1)) + 1e-5
    return -float((np.log(v) + 1 / v).sum())


def by_hand_naswot() -> float:
    c = (slopes(W1, W2)[0] > 0).astype(float)
    return float(np.linalg.slogdet(c @ c.T + (1 - c) @ (1 - c.T))[1])


BY_HAND: dict[str, Callable[[], float]] = {
    "parameters": lambda: 12 * 5 + 12 + 3 * 12,
    "macs": lambda: 12 * 5 + 3 * 12,
    "grad_norm": lambda: sum(float(np.linalg.norm(g)) for g in gradient(W1, W2)),
    "snip": lambda: sum(float(np.abs(w * g).sum()) for w, g in zip((W1, W2), gradient(W1, W2), strict=True)),
    "grasp": by_hand_grasp,
    "fisher": by_hand_fisher,
    "synflow": lambda: float(np.log(2 * (np.abs(W2) @ np.abs(W1)).sum())),  # all of R flows through either layer
    "jacob_cov": by_hand_jacob_cov,
    "naswot": by_hand_naswot,
    "zico": by_hand_zico,
}


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    report = onnxprune.proxies([NET], calibration={"x": X}, labels=LABELS, init="file", threads=1)
    assert (report["samples"], report["batch"], report["notes"]) == (8, 4, [])
    proxies: dict[str, float] = report["models"][0]["proxies"]
    return proxies


@pytest.mark.parametrize("name", PROXIES)
def test_proxy(name: str, found: dict[str, float]) -> None:
    assert found[name] == pytest.approx(BY_HAND[name](), rel=2e-4)


def test_a_batch_does_not_depend_on_memory(found: dict[str, float]) -> None:
    """Parts of a batch are summed up."""
    report = onnxprune.proxies([NET], calibration={"x": X}, labels=LABELS, init="file", threads=1, memory=300)
    assert report["models"][0]["proxies"] == pytest.approx(found, rel=1e-5)


# networks that say more


def test_synflow_of_products_that_leave_float32() -> None:
    """Of a skip connection, a convolution and two outputs; each weight times 2^k adds its flow's k log 2."""
    nodes = (
        "a = Conv<pads = [1,1,1,1]>(x, wa) r = Relu(a) b = Conv<pads = [1,1,1,1]>(r, wb) s = Add(b, r) y = Conv(s, wc)"
    )
    weights = {"wa": normal(4, 3, 3, 3), "wb": normal(4, 4, 3, 3, seed=1), "wc": normal(2, 4, 1, 1, seed=2)}

    def flow(a: float = 0, b: float = 0) -> float:
        scaled = weights | {"wa": weights["wa"] * 2.0**a, "wb": weights["wb"] * 2.0**b}
        proto = build(nodes, "float[1,3,6,6]", "float[1,2,6,6]", **scaled)
        proto.graph.output.append(build("s = Relu(x)", y="float[1,4,6,6]").graph.output[0])
        proto.graph.output[1].name = "s"
        return synflow(Network(load(proto), load(proto)))

    kernel = {name: np.abs(w) for name, w in weights.items()}

    def convolved(x: Array, w: Array) -> Array:
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
        return np.asarray(np.einsum("chwij,ocij->ohw", windows, w))

    a = convolved(np.ones((3, 6, 6)), kernel["wa"])
    long, short = (kernel["wc"].sum((0, 2, 3))[:, None, None] * t for t in (convolved(a, kernel["wb"]), a))
    through_b, beside = convolved(a, kernel["wb"]).sum() + long.sum(), a.sum() + short.sum()  # both outputs
    both = long.sum() + short.sum()  # what flows through wc
    assert flow() == pytest.approx(np.log(through_b * 2 + beside + both), rel=1e-5)
    far = np.log(through_b * 2 + long.sum()) + 200 * np.log(2)  # float32 ends at 2^128
    assert flow(100, 100) == pytest.approx(far, rel=1e-5)


def test_new_weights_and_standing_statistics() -> None:
    """By a seed, with BatchNormalization by the samples; or what the file holds."""
    weights: dict[str, Any] = {"w": normal(6, 1, 3, 3), "v": normal(3, 6, seed=1)}
    weights |= {"s": np.ones(6), "t": np.zeros(6), "m": np.full(6, 99.0), "u": np.full(6, 50.0)}
    net = build(
        "a = Conv(x, w) b = BatchNormalization(a, s, t, m, u) r = Relu(b) p = GlobalAveragePool(r) f = Flatten(p) "
        "y = Gemm<transB = 1>(f, v)", "float[n,1,6,6]", "float[n,3]", **weights,
    )  # fmt: skip
    x = {"x": noise(12, 1, 6, 6)}
    asked: dict[str, Any] = {"calibration": x, "labels": np.arange(12) % 3, "threads": 1}
    one, same, other, file = (
        onnxprune.proxies([net], init=init, **asked)["models"][0]["proxies"] for init in (0, 0, 1, "file")
    )
    assert one == same and all(one[p] != other[p] for p in one if p not in ("parameters", "macs"))
    assert file["naswot"] is None  # with these statistics every rectifier is shut
    shut = onnxprune.proxies([net], init="file", **asked, proxy=["naswot", "zico"])
    assert [n.partition(": ")[2] for n in shut["notes"]] == [
        "naswot says nothing: 96 rectifiers do not tell 12 samples apart; give fewer --samples",
        "zico says nothing: the gradients of all batches are the same",
    ]


def test_without_labels() -> None:
    """The loss is left out, and said to be; fisher goes by the outputs' own distribution."""
    x = {"x": X}
    report = onnxprune.proxies([NET], calibration=x, init="file", threads=1)
    assert list(report["models"][0]["proxies"]) == [n for n, row in PROXIES.items() if not row.labels]
    assert report["notes"] == ["left out, as there are no labels: grad_norm, snip, grasp, zico"]
    own = report["models"][0]["proxies"]["fisher"]
    assert own > 0 and own != pytest.approx(by_hand_fisher(), rel=1e-3)
    with pytest.raises(OptionError, match=r"proxy='?snip'? needs labels: .*; fisher, jacob_cov, naswot do without"):
        onnxprune.proxies([NET], calibration=x, proxy="snip")


def test_numbers_that_leave_float32() -> None:
    net = load(NET)
    for name, w in net.weights.items():
        net.weights[name] = w * np.float32(1e30)
    report = onnxprune.proxies([net], calibration={"x": X}, labels=LABELS, init="file", threads=1)
    values = report["models"][0]["proxies"]
    assert values["snip"] is None and values["synflow"] == pytest.approx(BY_HAND["synflow"]() + 60 * np.log(10))
    assert "model 1: snip says nothing: float32 overflows" in report["notes"]
    json.dumps(report, allow_nan=False)


def test_without_samples() -> None:
    report = onnxprune.proxies([NET], proxy=["synflow", "macs"], init="file")
    assert report["models"][0]["proxies"] == pytest.approx({"synflow": BY_HAND["synflow"](), "macs": 96}, rel=1e-5)
    assert report["data"] is None


def test_what_is_no_picture_and_has_no_rectifier() -> None:
    nodes = "e = Gather(t, x) p = ReduceMean<axes = [1], keepdims = 0>(e) y = MatMul(p, w)"
    net = build(nodes, "int64[n,4]", "float[n,3]", t=normal(9, 6), w=normal(6, 3, seed=1))
    words = {"x": np.arange(40).reshape(10, 4) % 9}
    report = onnxprune.proxies([net], calibration=words, labels=np.arange(10) % 3, threads=1)
    values = report["models"][0]["proxies"]
    assert [n for n, v in values.items() if v is None] == ["jacob_cov", "naswot"]
    assert {n.partition(": ")[2] for n in report["notes"]} == {
        "jacob_cov says nothing: no input is of a floating-point type", "naswot says nothing: it has no rectifier",
    }  # fmt: skip


# correlations


def test_coefficients() -> None:
    rng = np.random.default_rng(0)
    for size, values in ((9, 1000), (12, 3)):  # the second with many ties
        a, b = rng.integers(0, values, (2, size)).astype(np.float64)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
        assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert np.isnan([f(np.ones(5), rng.random(5)) for f in COEFFICIENTS.values()]).all()


def test_interval() -> None:
    """Around the value, narrower with more pairs, the same by the same seed, and a point where all agree."""
    rng = np.random.default_rng(0)
    a = rng.random(120)
    b = a + rng.normal(size=120) * 0.3
    few, many = (bootstrap(spearman, a[:n], b[:n], 0) for n in (20, 120))
    assert few.low < few.value < few.high and many.high - many.low < 0.6 * (few.high - few.low)
    assert bootstrap(spearman, a[:20], b[:20], 0) == few != bootstrap(spearman, a[:20], b[:20], 1)
    alike = bootstrap(kendall, a, a, 0)
    assert (alike.value, alike.low, alike.high) == (1, 1, 1)


def nets(folder: Path, count: int = 6) -> list[str]:
    """Networks of more and more units."""
    paths = []
    for k in range(count):
        net = build("h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)", "float[n,5]", "float[n,3]",
                    a=normal(5, 4 + 2 * k, seed=k), b=normal(4 + 2 * k, 3, seed=k))  # fmt: skip
        paths.append(folder / f"net{k}.onnx")
        paths[-1].write_bytes(net.SerializeToString())
    return [str(p) for p in paths]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, table, out = nets(tmp_path), tmp_path / "scores.csv", tmp_path / "out.json"
    scores = [0.5, 0.6, 0.55, 0.8, 0.7, 0.9]
    table.write_text("name,accuracy\n" + "".join(f"net{k}.onnx, {s}\n" for k, s in enumerate(scores)) + "other,0.1\n")
    np.savez(tmp_path / "x.npz", x=X, labels=LABELS)
    words = ["proxies", *files, "--calibration", str(tmp_path / "x.npz"), "--scores", str(table), "--threads", "1"]
    assert run([*words, "--json", str(out)]) == 0
    said = capsys.readouterr().out
    report = json.loads(out.read_text())
    row = next(r for r in report["correlations"] if r["proxy"] == "parameters")
    assert row["spearman"]["value"] == pytest.approx(stats.spearmanr(range(6), scores).statistic)
    assert row["kendall"]["value"] == pytest.approx(stats.kendalltau(range(6), scores).statistic)
    assert row["spearman"]["low"] <= row["spearman"]["value"] <= row["spearman"]["high"]
    assert [m["score"] for m in report["models"]] == scores and report["models"][0]["model"] == files[0]
    assert "0.89" in said and "note: --scores has rows of no model here: other" in said
    assert [list(m["proxies"]) for m in report["models"]] == [list(PROXIES)] * 6
    as_json = tmp_path / "scores.json"
    as_json.write_text(json.dumps({f"net{k}": s for k, s in enumerate(scores)}))
    for other in (as_json, scores, dict(zip(files, scores, strict=True))):
        again = onnxprune.proxies(files, proxy="parameters", scores=other)
        assert again["correlations"][0] == row


def test_proxies_that_say_too_little_have_no_correlation(tmp_path: Path) -> None:
    files = nets(tmp_path, 3) * 2
    report = onnxprune.proxies(files, calibration={"x": X[:, :5]}, proxy=["naswot", "macs"], scores=[1, 2, 3, 4, 5, 6])
    assert report["models"][0]["proxies"]["naswot"] is None  # of four rectifiers
    by = {r["proxy"]: r for r in report["correlations"]}
    assert by["naswot"]["spearman"] is None and by["macs"]["spearman"]["value"] > 0
    assert "naswot: no correlation: it tells too few models apart" in report["notes"]


REFUSED: dict[str, tuple[list[str], str]] = {
    "no samples": (["NETS"], "give --calibration SRC, or choose with --proxy: parameters, macs, synflow"),
    "four models": (["FOUR", "--proxy", "macs", "--scores", "SCORES"], "a correlation over 4 models means nothing"),
    "a model without": (["NETS", "--proxy", "macs", "--scores", "FEW"], "net5.onnx has no score in the table"),
    "two of one": (["NETS", "--proxy", "macs", "--scores", "TWICE"], "net0.onnx has 2 scores"),
    "no number": (["NETS", "--proxy", "macs", "--scores", "WORDS"], "the score of "),
    "alike": (["NETS", "--proxy", "macs", "--scores", "ALIKE"], "all models have the score 1"),
    "no table": (["NETS", "--proxy", "macs", "--scores", "BROKEN"], "expected rows `name,score`, or a JSON object"),
    "not there": (["NETS", "--proxy", "macs", "--scores", "nothing.csv"], "--scores nothing.csv: cannot be read"),
    "another proxy": (["NETS", "--proxy", "magic"], "--proxy magic: unknown; choose one of parameters, "),
    "labels of none": (["NETS", "--proxy", "macs", "--labels", "x.npy"], "--labels needs --calibration SRC"),
    "samples of none": (
        ["NETS", "--proxy", "macs", "--calibration", str(DIGITS)],
        "--calibration has no effect: no samples are asked for by macs",
    ),
    "pictures of none": (["NETS", "--proxy", "macs", "--preset", "tf"], "--preset tf: no samples are read"),
    "no seed": (["NETS", "--init", "soon"], "--init soon: expected a seed, 0 or more, or the word file"),
    "one sample": (["NETS", "--calibration", "X", "--samples", "1"], "two samples or more are needed"),
    "others": (["NETS", "--calibration", str(DIGITS)], "expects (?, 5)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, why = REFUSED[case]
    files = nets(tmp_path)
    np.save(tmp_path / "x.npy", X)
    rows = [(Path(f).name, 1.0 + k) for k, f in enumerate(files)]
    tables: dict[str, list[Any]] = {
        "SCORES": rows, "FEW": rows[:5], "TWICE": [*rows, ("net0", 2.0)], "WORDS": [(n, "good") for n, _ in rows],
        "ALIKE": [(n, 1.0) for n, _ in rows], "BROKEN": [("a", "b,c")],
    }  # fmt: skip
    named = {"X": str(tmp_path / "x.npy")}
    for name, table in tables.items():
        named[name] = str(tmp_path / f"{name}.csv")
        Path(named[name]).write_text("name,score\n" + "".join(f"{n},{v}\n" for n, v in table))
    several = {"NETS": files, "FOUR": files[:4]}
    given = [w for word in words for w in several.get(word, [named.get(word, word)])]
    assert run(["proxies", *given]) == 2
    captured = capsys.readouterr()
    assert why in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


def test_every_row_is_listed() -> None:
    assert {name: row.help for name, row in PROXIES.items()} == next(o for o in OPTIONS if o.name == "proxy").choices
    assert all(row.help and (not row.labels or row.samples) for row in PROXIES.values())
