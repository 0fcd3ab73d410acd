"""What every command writes, as hashes, so that two versions can be compared: python tools/fingerprints.py OUT.json

Runs the command line on every model of a folder (`--channels 0.3 --recover none`, and `--sparsity 0.8 --format csr`)
and one of every kind of cut, criterion, recovery, solver and format on `models/`. Hashed are nodes (functions
included), initializers, inputs and outputs, kept units, zeros per layer, and the whole plan and report but for paths,
times and version; producer and metadata are not. `--against OLD.json` names what differs.
`--tree DIR` runs another checkout's package (its C extension must be built in place).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
EACH = {"channels": "--channels 0.3 --recover none", "csr": "--sparsity 0.8 --format csr"}
DATA = f"--calibration {MODELS}/digits_calibration.npz"
CASES = {
    "digits_resnet_bn": (
        f"--target-macs 60% {DATA} --evaluate {MODELS}/digits_heldout.npz",
        f"--channels 0.3 --importance bn_scale --recover batchnorm {DATA}",
        f"--channels 0.3 --importance regression --recover mean-std {DATA}",
        "--target-macs 60% --importance lamp --allocate global --recover bias",
        f"--target-macs 60% --allocate error {DATA}",
        "--layers 0.3 --recover none",
        f"--pattern 2:4 --format nm --permute {DATA}",
        f"--cluster 16 {DATA}",
        "--cluster 16 --cluster-per channel --cluster-storage packed",
    ),
    "digits_resnet_folded": ("--channels 0.3 --recover bias", f"--channels 0.3 {DATA}"),
    "digits_vit": (
        f"--heads 0.5 --channels 0.3 {DATA}",
        f"--hidden 0.25 --heads 0.25 --importance head_loss {DATA}",
        "--head-dim 0.25 --recover none",
        "--sparsity 0.7 --sparsity-allocate lamp --format csr --values int8",
        f"--sparsity 0.5 --solver sparsegpt --sparsity-allocate owl --format csr {DATA}",
    ),
    "digits_mobile_se": (
        f"--sparsity 0.7 --format csr {DATA}",
        f"--channels 0.25 --sparsity 0.6 --solver obc --format sparse-initializer {DATA}",
        "--channels 0.3 --importance fpgm --steps 2 --recover bias",
    ),
    "digits_mlp": (
        f"--sparsity 0.5 --pattern block:4x4 --format bsr --solver wanda --calibration {MODELS}/digits_mlp.npz",
        "--sparsity 0.5 --pattern column --format columns",
        "--sparsity 0.6 --sparsity-allocate erk --format csr --values bfloat16",
    ),
    "digits_unet": (f"--channels 0.3 --importance activation --calibration {MODELS}/digits_unet.npz",),
    "digits_gru": (f"--channels 0.3 --importance wanda --calibration {MODELS}/digits_gru.npz",),
    "sst2_encoder": ("--hidden 0.25 --recover none", "--layers 0.3 --recover none"),
}
UNSTEADY = {"model", "output", "seconds", "version"}  # of a report
REST = "--no-latency --quiet --threads 1"


def digest(*parts: bytes) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the parts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()[:16]


def fingerprint(path: Path, plan: Path, report: Path) -> dict[str, str]:
    """Hashes of a written model and of the plan that went with it."""
    model = onnx.load(path)
    g = model.graph
    # paths are those of a checkout
    chosen, said = (json.loads(f.read_text().replace(f"{MODELS}/", "")) for f in (plan, report))
    sparse = (chosen.get("sparsity") or {}).get("layers", {})
    return {
        "nodes": digest(*(n.SerializeToString(deterministic=True) for n in (*g.node, *model.functions))),
        "initializers": digest(
            *(t.SerializeToString(deterministic=True) for t in (*g.initializer, *g.sparse_initializer))
        ),
        "inputs and outputs": digest(*(v.SerializeToString(deterministic=True) for v in (*g.input, *g.output))),
        "kept units": digest(json.dumps(chosen["groups"], sort_keys=True).encode()),
        "masks": digest(json.dumps(sparse, sort_keys=True).encode()),
        "plan": digest(json.dumps(chosen, sort_keys=True).encode()),
        "report": digest(json.dumps({k: v for k, v in said.items() if k not in UNSTEADY}, sort_keys=True).encode()),
    }


def run(model: Path, options: str, tree: Path) -> dict[str, str]:
    """The fingerprint of one command, or what it said where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        out, plan, report = (Path(folder) / name for name in ("out.onnx", "plan.json", "report.json"))
        module = "onnxprune" if (tree / "onnxprune" / "__main__.py").is_file() else "onnxprune.cli.app"
        command = [sys.executable, "-m", module, str(model), *options.split(), *REST.split()]
        command += ["-o", str(out), "--save-plan", str(plan), "--json", str(report)]
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        given = {**os.environ, **threads, "PYTHONPATH": str(tree)}
        done = subprocess.run(command, capture_output=True, text=True, env=given, cwd=folder, check=False)
        if done.returncode:
            return {"exit code": str(done.returncode), "said": done.stderr.strip().splitlines()[-1][:300]}
        return fingerprint(out, plan, report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--assets", type=Path, help="folder of models")
    parser.add_argument("--tree", type=Path, default=ROOT)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    args = parser.parse_args()
    cases = {f"models/{m}.onnx {o}": (MODELS / f"{m}.onnx", o) for m, options in CASES.items() for o in options}
    for model in sorted(args.assets.glob("*.onnx")) if args.assets else ():
        cases |= {f"{model.name} {options}": (model, options) for options in EACH.values()}
    cases = {name: case for name, case in cases.items() if args.only in name}
    rows: dict[str, Any] = {}
    for name, (model, options) in cases.items():
        rows[name.replace(f"{MODELS}/", "")] = run(model, options, args.tree)
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
        print(name, rows[name.replace(f"{MODELS}/", "")], flush=True)
    if args.against:
        old = json.loads(args.against.read_text())
        differ = {
            k: [p for p in sorted({*v, *old.get(k, {})}) if v.get(p) != old.get(k, {}).get(p)] for k, v in rows.items()
        }
        for name, parts in differ.items():
            if parts:
                print(f"differs: {name}: {', '.join(parts)}")
        print(f"{len(rows)} cases, {sum(map(bool, differ.values()))} differ")


if __name__ == "__main__":
    main()
