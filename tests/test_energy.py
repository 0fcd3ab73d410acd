"""Energy of a run: the model by hand, tables of files, targets, and the processor's counters."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxprune
from conftest import ROOT, Cli
from models.nets import build, normal
from onnxprune import OptionError
from onnxprune.graph.energy import HOROWITZ, Energy, EnergyTable, table_of
from onnxprune.graph.io import load, weight_bytes
from onnxprune.pipeline.footprint import energy_of
from onnxprune.runtime.rapl import Rapl
from onnxprune.structure.groups import analyze

PERCEPTRON = "h = MatMul(x, w) r = Relu(h) k = MatMul(r, v) s = Relu(k) y = MatMul(s, u)"
RESNET = ROOT / "models" / "digits_resnet_bn.onnx"
NANO, PICO = 1e-9, 1e-12


def convolution() -> ModelProto:
    """The layer of docs/energy.md."""
    return build("y = Conv<pads = [1, 1, 1, 1]>(x, w)", "float[1,16,8,8]", w=normal(32, 16, 3, 3))


def taken(proto: ModelProto, table: EnergyTable = HOROWITZ) -> Energy:
    return energy_of(load(proto), table)


def test_a_layer_by_hand() -> None:
    """MACs 32 x 16 x 9 x 64; weights 18432 bytes from 32 KiB; 4096 bytes in and 8192 out, both in 8 KiB."""
    found = taken(convolution())
    assert found.arithmetic == pytest.approx(294_912 * (3.7 + 0.9) * PICO)
    assert found.weights == pytest.approx(18_432 / 8 * 20 * PICO)
    assert found.activations == pytest.approx((4096 + 8192) / 8 * 10 * PICO)
    assert found.weights_from == "32 KiB cache"
    assert found.joules == pytest.approx(1418.0352 * NANO)
    page = (ROOT / "docs" / "energy.md").read_text(encoding="utf-8")
    assert "1418.0352 nJ" in page


def test_what_is_looked_at_or_taken_over_is_not_moved_twice() -> None:
    """Reshape moves nothing; Relu reads and writes the map that it takes over; a map that is read twice stays."""
    plain = taken(build("h = Conv(x, w) y = Conv(h, v)", "float[1,4,8,8]", w=normal(4, 4, 1, 1), v=normal(4, 4, 1, 1)))
    nodes = "h = Conv(x, w) r = Relu(h) y = Conv(r, v)"
    relu = taken(build(nodes, "float[1,4,8,8]", w=normal(4, 4, 1, 1), v=normal(4, 4, 1, 1)))
    assert relu.activations == pytest.approx(plain.activations + 2 * 1024 / 8 * 10 * PICO)
    flat = taken(
        build("h = MatMul(x, w) f = Flatten(h) y = MatMul(f, v)", "float[2,8]", w=normal(8, 8), v=normal(8, 8))
    )
    same = taken(build("h = MatMul(x, w) y = MatMul(h, v)", "float[2,8]", w=normal(8, 8), v=normal(8, 8)))
    assert flat.joules == pytest.approx(same.joules)


def test_types_have_their_own_arithmetic() -> None:
    half = build("y = MatMul(x, w)", "float16[4,8]", w=normal(8, 8).astype(np.float16))
    assert taken(half).arithmetic == pytest.approx(4 * 8 * 8 * 1.5 * PICO)
    nodes = "d = DequantizeLinear(x, s) f = DequantizeLinear(w, s) y = MatMul(d, f)"
    scale, integers = np.array(0.5, np.float32), np.ones((8, 8), np.int8)
    quantized = build(nodes, "int8[4,8]", w=integers, s=scale)
    assert taken(quantized).arithmetic == pytest.approx(4 * 8 * 8 * 0.3 * PICO)


def test_rows_of_a_table_are_read_not_all_of_it() -> None:
    proto = build("y = Gather(w, x)", "int64[3]", w=normal(1000, 8))
    assert taken(proto).weights == pytest.approx(3 * 8 * 4 / 8 * 20 * PICO)


def test_a_sparse_file_multiplies_what_is_not_zero() -> None:
    weight = normal(64, 64)
    weight.ravel()[: 64 * 48] = 0
    dense = build("y = MatMul(x, w)", "float[4,64]", w=weight)
    sparse = onnxprune.prune(dense, format="csr", measure=False).written
    assert sparse is not None
    before, after = taken(dense), energy_of(sparse, HOROWITZ)
    assert after.arithmetic == pytest.approx(before.arithmetic / 4)
    assert (before.weights_from, after.weights_from) == ("32 KiB cache", "8 KiB cache")
    assert after.weights == pytest.approx(weight_bytes(sparse) / 8 * 10 * PICO)


@pytest.mark.parametrize(
    ("target", "options"),
    [("25uJ", {"recover": "none"}), ("60%", {"recover": "none", "steps": 2})],
)
def test_a_target_holds_in_the_written_file(target: str, options: dict[str, Any]) -> None:
    result = onnxprune.prune(RESNET, target_energy=target, measure=False, **options)
    before, after = result.report.before.energy, result.report.after.energy
    assert before is not None and after is not None and result.written is not None
    limit = 0.6 * before.joules if "%" in target else 25e-6
    assert 0.9 * limit < after.joules <= 1.002 * limit  # biases that make up for what went are not in the plan
    assert after == energy_of(result.written, HOROWITZ)
    (row,) = result.report.got
    assert row.got == pytest.approx(after.joules / before.joules)


def test_the_least_energy_under_a_bound() -> None:
    data = str(ROOT / "models" / "digits_mlp.npz")
    mlp = ROOT / "models" / "digits_mlp.onnx"
    result = onnxprune.prune(mlp, max_drop=0.05, minimize="energy", evaluate=data, recover="bias", measure=False)
    before, after = result.report.before.energy, result.report.after.energy
    assert before is not None and after is not None and after.joules < 0.9 * before.joules
    assert any("of the joules" in note for note in result.report.notes)


def test_a_cut_is_counted_as_its_file() -> None:
    """What is planned, by ids, beside the file that comes of it."""
    analysis = analyze(load(RESNET))
    model = analysis.energy(HOROWITZ)
    result = onnxprune.prune(RESNET, channels=0.5, recover="none", verify=False, energy=True, measure=False)
    planned, written = model.of(analysis.keep_ids(dict(result.plan.keep))), result.report.after.energy
    assert written is not None
    assert planned.joules == pytest.approx(written.joules, rel=1e-9)
    assert result.report.to_dict()["after"]["energy"]["joules"] == written.joules


def test_a_target_is_spread_by_data() -> None:
    """Where the weights stay in the same cache, so that no step lies between."""
    weights: dict[str, Any] = {"w": normal(16, 64), "v": normal(64, 64), "u": normal(64, 4)}
    proto = build(PERCEPTRON, "float[1,16]", **weights)
    result = onnxprune.prune(proto, target_energy="60%", calibration={"x": normal(24, 16)}, measure=False, round_to=1)
    before, after = result.report.before.energy, result.report.after.energy
    assert before is not None and after is not None
    assert after.weights_from == before.weights_from == "32 KiB cache"
    assert 0.5 * before.joules < after.joules <= 0.62 * before.joules  # biases were added


@pytest.mark.parametrize("calibration", [{"x": normal(24, 16)}, None])
def test_what_cannot_be_reached_says_how_far_one_gets(calibration: Any) -> None:
    options = {"recover": "none"} if calibration is None else {"calibration": calibration}
    proto = build("h = MatMul(x, w) r = Relu(h) y = MatMul(r, u)", "float[1,16]", w=normal(16, 64), u=normal(64, 4))
    with pytest.raises(
        OptionError, match=r"target_energy='0.01nJ' cannot be reached by channels.*\d+% of (the )?energy are left"
    ):
        onnxprune.prune(proto, target_energy="0.01nJ", **options)


@pytest.mark.parametrize("text", ["1MB", "5M", "0", "2kJ", "100J"])
def test_units_of_energy(text: str) -> None:
    with pytest.raises(OptionError, match="target_energy"):
        onnxprune.prune(RESNET, target_energy=text, recover="none")


# tables


def written(path: Path, **changes: Any) -> Path:
    costs = {t: {"multiply": 1.0, "add": 0.5} for t in ("float32", "float16", "int8")}
    levels = [{"name": "small", "bytes": 4096, "access": 1}, {"name": "large", "access": 8}]
    path.write_text(json.dumps({"source": "a chip", "arithmetic": costs, "levels": levels, **changes}))
    return path


def test_a_table_of_a_file(tmp_path: Path) -> None:
    table = table_of(written(tmp_path / "t.json"))
    assert table.level(4096).name == "small" and table.level(1e12).bytes == math.inf
    found = taken(convolution(), table)
    assert found.joules == pytest.approx((294_912 * 1.5 + 18_432 / 8 * 8 + 4096 / 8 * 1 + 8192 / 8 * 8) * PICO)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": 3}, "source: expected whose figures"),
        ({"arithmetic": {}}, r"arithmetic\.float32\.multiply: expected a number"),
        (
            {"arithmetic": {"float32": {"multiply": -1, "add": 0}}},
            r"arithmetic\.float32\.multiply: expected a number, 0",
        ),
        ({"levels": []}, "levels: expected at least one"),
        ({"levels": [{"name": "a", "bytes": 9, "access": 1}, {"name": "b"}]}, r"levels\.1\.access"),
        ({"levels": [{"name": n, "bytes": 9, "access": 1} for n in "abc"]}, "levels: expected .* more bytes"),
        ({"levels": 7}, "levels: expected memories"),
    ],
)
def test_a_wrong_table_names_the_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "t.json", **changes)
    with pytest.raises(OptionError, match=f"--energy-table {path}: {message}.*docs/energy.md"):
        table_of(path)


@pytest.mark.parametrize("asked", ["--channels 0.3 --energy -o {}/o.onnx", "--target-energy 70% -o {}/o.onnx"])
def test_a_wrong_table_is_refused_before_anything_is_done(call: Cli, tmp_path: Path, asked: str) -> None:
    path = written(tmp_path / "t.json", source=None)
    done = call(f"{RESNET} {asked.format(tmp_path)} --energy-table {path}")
    assert done.code == 2 and done.err.count("\n") == 1 and "source: expected" in done.err
    assert not (tmp_path / "o.onnx").exists()


def test_tables_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no\.json: No such file"):
        table_of(tmp_path / "no.json")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(OptionError, match=r"t\.json: "):
        table_of(tmp_path / "t.json")


def test_tables_are_listed(call: Cli) -> None:
    assert "float32: multiply 3.7, add 0.9" in " ".join(call("inspect --energy-table list").out.split())


# counters


def package(folder: Path, k: int, energy: int, most: int = 999_999) -> Path:
    path = folder / f"intel-rapl:{k}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    return path


def test_counters_of_all_packages_wrap_around(tmp_path: Path) -> None:
    first, second = package(tmp_path, 0, 999_000), package(tmp_path, 1, 5_000)
    package(tmp_path, 7, 1).rename(tmp_path / "intel-rapl:0:0")  # a part of package 0
    rapl = Rapl.found(tmp_path)
    assert rapl is not None and set(rapl.ranges) == {first, second}
    before = rapl.read()
    package(tmp_path, 0, 1_000)
    package(tmp_path, 1, 8_000)
    assert rapl.joules(before, rapl.read()) == pytest.approx(2e-3 + 3e-3)


def test_joules_of_a_run(tmp_path: Path) -> None:
    """A run that costs 3 mJ, beside one that costs 1 mJ."""
    package(tmp_path, 0, 0)
    rapl = Rapl.found(tmp_path)
    assert rapl is not None
    now = 0

    def run(cost: int) -> None:
        nonlocal now
        now = (now + cost) % 1_000_000
        package(tmp_path, 0, now)

    found = rapl.per_run([lambda: run(3_000), lambda: run(1_000)], 0.0)
    assert found == pytest.approx([3e-3, 1e-3])


def test_counters_that_cannot_be_read_are_not_offered(tmp_path: Path) -> None:
    assert Rapl.found(tmp_path) is None
    (package(tmp_path, 0, 0) / "energy_uj").unlink()
    assert Rapl.found(tmp_path) is None


def test_bench_says_which(call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    onnx.save(convolution(), path)
    words = f"bench {path} --threads 1 --seconds 0.05 --no-memory"
    monkeypatch.setattr("onnxprune.runtime.benchmark.POWERCAP", tmp_path / "none")
    done = call(f"{words} --json -")
    model = json.loads(done.out)["models"][0]
    assert model["energy"]["joules"] == pytest.approx(1418.0352 * NANO) and model["joules"] is None
    assert "1.418" in call(words).out and "no counters" in call(words).out
    package(tmp_path, 0, 5)
    monkeypatch.setattr("onnxprune.runtime.benchmark.POWERCAP", tmp_path)
    assert json.loads(call(f"{words} --json -").out)["models"][0]["joules"] == 0.0
    assert "(counters)" in call(words).out


def test_inspect_tells_the_energy(call: Cli) -> None:
    assert "energy of a run: 41.15 uJ (arithmetic 30.32 uJ, weights from 1 MiB cache" in call(f"inspect {RESNET}").out
