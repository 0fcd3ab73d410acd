"""A LLaMA-shaped decoder with seeded random weights and external data of a given size, for timings and memory tests.

    python tools/llama.py OUT.onnx                  about 6.2 GB of float32 in OUT.onnx.data
    python tools/llama.py OUT.onnx --gigabytes 2    as many layers as that takes
    python tools/llama.py OUT.onnx --preset small   about 20 MB, for a quick test
    python tools/llama.py OUT.onnx --check          then onnx.checker, and a run with batch 2 and sequence 7

Architecture: Touvron et al., "LLaMA", arXiv 2302.13971, with grouped queries (Ainslie et al., arXiv 2305.13245): no
biases, RMS norm in its parts, rotary positions, a causal mask and the shapes of the heads computed from the input's, as
PyTorch's exporter writes them. Weights are written in pieces of CHUNK values, so memory does not grow with size.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

OPSET, IR_VERSION = 17, 8
EPSILON = 1e-6
THETA = 10_000.0  # base of the rotary frequencies
POSITIONS = 2048  # rows of the rotary tables
ALIGNMENT = 4096  # bytes; external tensors start at page boundaries, so that they can be memory-mapped
CHUNK = 1 << 22  # values made and written at a time
DTYPES = {"float32": (TensorProto.FLOAT, np.float32), "float16": (TensorProto.FLOAT16, np.float16)}
GIGABYTES = 6.2
PRESETS = {
    "large": {"width": 2560, "heads": 20, "kv_heads": 4, "inner": 6912, "vocab": 32_000},
    "small": {"width": 256, "heads": 8, "kv_heads": 2, "inner": 688, "vocab": 4096, "layers": 4},
}


class _Decoder:
    """Nodes and initializers of a decoder; names follow transformers' modules."""

    def __init__(self, data: BinaryIO, heads: int, kv_heads: int, head: int, seed: int, dtype: str) -> None:
        self.data = data
        self.heads, self.kv_heads, self.head = heads, kv_heads, head
        self.rng = np.random.default_rng(seed)
        self.dtype: Any
        self.code, self.dtype = DTYPES[dtype]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.counts: dict[str, int] = {}

    # initializers and nodes

    def tensor(self, name: str, shape: tuple[int, ...], deviation: float = 0.0, mean: float = 0.0) -> str:
        """Normal values at the next page boundary of the data file, and the tensor that points to them."""
        self.data.seek(-(-self.data.tell() // ALIGNMENT) * ALIGNMENT)
        offset, left = self.data.tell(), math.prod(shape)
        while left:
            values = self.rng.standard_normal(min(left, CHUNK), np.float32)
            values *= np.float32(deviation)
            values += np.float32(mean)
            values.astype(self.dtype, copy=False).tofile(self.data)
            left -= len(values)
        tensor = onnx.TensorProto(name=name, data_type=self.code, dims=shape, data_location=TensorProto.EXTERNAL)
        place = {"location": Path(self.data.name).name, "offset": offset, "length": self.data.tell() - offset}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        self.initializers.append(tensor)
        return name

    def node(self, scope: str, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a node named like `/model/layers.0/mlp/Mul_1`, as PyTorch's exporter names it."""
        count = self.counts[f"{scope}/{kind}"] = self.counts.get(f"{scope}/{kind}", -1) + 1
        name = f"{scope}/{kind}_{count}" if count else f"{scope}/{kind}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def constant(self, scope: str, value: Any, dtype: Any = np.int64) -> str:
        return self.node(scope, "Constant", value=numpy_helper.from_array(np.array(value, dtype)))

    # shape arithmetic

    def size(self, scope: str, x: str, axis: int) -> str:
        """The size of one axis as a scalar."""
        return self.node(scope, "Gather", self.node(scope, "Shape", x), self.constant(scope, axis), axis=0)

    def sizes(self, scope: str, *parts: str | int) -> str:
        """A shape of scalars that are computed and numbers that are known."""
        rows = [
            self.constant(scope, [p]) if isinstance(p, int) else self.node(scope, "Unsqueeze", p, self._zero(scope))
            for p in parts
        ]
        return self.node(scope, "Concat", *rows, axis=0)

    def _zero(self, scope: str) -> str:
        return self.constant(scope, [0])

    # modules

    def linear(self, scope: str, x: str, rows: int, columns: int) -> str:
        """MatMul without bias."""
        name = f"{scope.strip('/').replace('/', '.')}.weight"
        return self.node(scope, "MatMul", x, self.tensor(name, (rows, columns), rows**-0.5))

    def norm(self, scope: str, x: str, width: int) -> str:
        """RMS norm; half precision is left for the sum of squares, as transformers does."""
        half = self.code == TensorProto.FLOAT16
        h = self.node(scope, "Cast", x, to=TensorProto.FLOAT) if half else x
        square = self.node(scope, "Pow", h, self.constant(scope, 2, np.float32))
        mean = self.node(scope, "ReduceMean", square, axes=[-1], keepdims=1)
        root = self.node(scope, "Sqrt", self.node(scope, "Add", mean, self.constant(scope, EPSILON, np.float32)))
        h = self.node(scope, "Mul", h, self.node(scope, "Div", self.constant(scope, 1, np.float32), root))
        h = self.node(scope, "Cast", h, to=self.code) if half else h
        weight = self.tensor(f"{scope.strip('/').replace('/', '.')}.weight", (width,), 0.1, 1.0)
        return self.node(scope, "Mul", weight, h)

    def rotary_tables(self) -> None:
        """cos and sin for all positions, `(POSITIONS, head)`, both halves alike; inside the model file."""
        angles = np.outer(np.arange(POSITIONS), THETA ** (-np.arange(0, self.head, 2) / self.head))
        angles = np.concatenate([angles, angles], axis=1)
        for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            self.initializers.append(numpy_helper.from_array(table.astype(self.dtype), f"model.rotary_emb.{name}"))

    def positions(self) -> tuple[str, str, str]:
        """cos and sin of the positions 0 to sequence - 1, and the causal mask `(1, 1, sequence, sequence)`."""
        scope = "/model"
        start, step = self.constant(scope, 0), self.constant(scope, 1)
        places = self.node(scope, "Range", start, self.size(scope, "input_ids", 1), step)
        rotary = "/model/rotary_emb"
        cos, sin = (self.node(rotary, "Gather", f"model.rotary_emb.{name}", places, axis=0) for name in ("cos", "sin"))
        column = self.node(scope, "Unsqueeze", places, self.constant(scope, [1]))
        later = self.node(scope, "Less", column, self.node(scope, "Unsqueeze", places, self._zero(scope)))
        least, zero = (self.constant(scope, value, self.dtype) for value in (np.finfo(self.dtype).min, 0))
        mask = self.node(scope, "Where", later, least, zero)
        return cos, sin, self.node(scope, "Unsqueeze", mask, self.constant(scope, [0, 1]))

    def rotate(self, scope: str, x: str, cos: str, sin: str) -> str:
        """x * cos + (-second half, first half) * sin."""
        ends = (0, self.head // 2, 2**63 - 1)
        first, second = (
            self.node(scope, "Slice", x, *(self.constant(scope, [v]) for v in (ends[k], ends[k + 1], 3, 1)))
            for k in (0, 1)
        )
        turned = self.node(scope, "Concat", self.node(scope, "Neg", second), first, axis=-1)
        return self.node(scope, "Add", self.node(scope, "Mul", x, cos), self.node(scope, "Mul", turned, sin))

    def repeated(self, scope: str, x: str, batch: str, sequence: str) -> str:
        """Every key and value head once per query head that reads it."""
        times = self.heads // self.kv_heads
        if times == 1:
            return x
        wide = self.sizes(scope, batch, self.kv_heads, times, sequence, self.head)
        x = self.node(scope, "Expand", self.node(scope, "Unsqueeze", x, self.constant(scope, [2])), wide)
        return self.node(scope, "Reshape", x, self.sizes(scope, batch, self.heads, sequence, self.head))

    def attention(self, scope: str, x: str, width: int, cos: str, sin: str, mask: str) -> str:
        batch, sequence = self.size(scope, x, 0), self.size(scope, x, 1)
        q, k, v = (
            self.node(
                scope,
                "Transpose",
                self.node(
                    scope,
                    "Reshape",
                    self.linear(f"{scope}/{part}_proj", x, width, count * self.head),
                    self.sizes(scope, batch, sequence, count, self.head),
                ),
                perm=[0, 2, 1, 3],
            )
            for part, count in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads))
        )
        q, k = self.rotate(scope, q, cos, sin), self.rotate(scope, k, cos, sin)
        k, v = self.repeated(scope, k, batch, sequence), self.repeated(scope, v, batch, sequence)
        scores = self.node(scope, "MatMul", q, self.node(scope, "Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.node(scope, "Div", scores, self.constant(scope, self.head**0.5, self.dtype))
        weights = self.node(scope, "Softmax", self.node(scope, "Add", scores, mask), axis=-1)
        mixed = self.node(scope, "Transpose", self.node(scope, "MatMul", weights, v), perm=[0, 2, 1, 3])
        joined = self.node(scope, "Reshape", mixed, self.sizes(scope, batch, sequence, self.heads * self.head))
        return self.linear(f"{scope}/o_proj", joined, self.heads * self.head, width)

    def feed_forward(self, scope: str, x: str, width: int, inner: int) -> str:
        gate = self.linear(f"{scope}/gate_proj", x, width, inner)
        gate = self.node(f"{scope}/act_fn", "Mul", gate, self.node(f"{scope}/act_fn", "Sigmoid", gate))
        both = self.node(scope, "Mul", gate, self.linear(f"{scope}/up_proj", x, width, inner))
        return self.linear(f"{scope}/down_proj", both, inner, width)


def build(
    path: str | Path,
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    inner: int,
    vocab: int,
    seed: int = 0,
    dtype: str = "float32",
) -> onnx.ModelProto:
    """Write the decoder to `path` and its weights to `path`.data; returns the model without weights, as written.

    Input `input_ids` int64 (batch, sequence), both dynamic; output `logits` (batch, sequence, vocab).
    """
    if width % heads or heads % kv_heads or width // heads % 2:
        raise ValueError(f"{width} wide, {heads} heads and {kv_heads} for keys: heads must divide, into even widths")
    path = Path(path)
    with open(f"{path}.data", "wb") as data:
        g = _Decoder(data, heads, kv_heads, width // heads, seed, dtype)
        g.rotary_tables()
        x = g.node("/model/embed_tokens", "Gather", g.tensor("model.embed_tokens.weight", (vocab, width), 1.0),
                   "input_ids", axis=0)  # fmt: skip
        cos, sin, mask = g.positions()
        for i in range(layers):
            scope = f"/model/layers.{i}"
            h = g.norm(f"{scope}/input_layernorm", x, width)
            x = g.node(scope, "Add", x, g.attention(f"{scope}/self_attn", h, width, cos, sin, mask))
            h = g.norm(f"{scope}/post_attention_layernorm", x, width)
            x = g.node(scope, "Add", x, g.feed_forward(f"{scope}/mlp", h, width, inner))
        x = g.norm("/model/norm", x, width)
        weight = g.tensor("lm_head.weight", (width, vocab), width**-0.5)
        g.nodes.append(helper.make_node("MatMul", [x, weight], ["logits"], name="/lm_head/MatMul"))
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])]
    outputs = [helper.make_tensor_value_info("logits", g.code, ["batch", "sequence", vocab])]
    model = helper.make_model(
        helper.make_graph(g.nodes, "llama", inputs, outputs, g.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="onnxprune.tools",
    )  # fmt: skip
    path.write_bytes(model.SerializeToString())
    return model


def layers_for(gigabytes: float, dtype: str = "float32", **sizes: int) -> int:
    """Layers with which the data file of these sizes comes nearest to so many 1e9 bytes; at least 1."""
    width, inner, kv = sizes["width"], sizes["inner"], sizes["width"] // sizes["heads"] * sizes["kv_heads"]
    layer = 2 * width * width + 2 * width * kv + 3 * width * inner + 2 * width
    rest = 2 * sizes["vocab"] * width + width
    return max(1, round((gigabytes * 1e9 / np.dtype(DTYPES[dtype][1]).itemsize - rest) / layer))


def large(path: str | Path, gigabytes: float = GIGABYTES, *, seed: int = 0, dtype: str = "float32") -> onnx.ModelProto:
    """`build` with the widths of the large preset and as many layers as `gigabytes` takes."""
    sizes = PRESETS["large"]
    return build(path, layers=layers_for(gigabytes, dtype, **sizes), **sizes, seed=seed, dtype=dtype)


def check(path: Path, batch: int = 2, sequence: int = 7) -> tuple[int, ...]:
    """Shape of the logits of a run. Raises where onnx.checker or onnxruntime refuses, or a logit is not finite."""
    import onnxruntime as ort

    onnx.checker.check_model(str(path))
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.arange(batch * sequence, dtype=np.int64).reshape(batch, sequence)
    logits: Array = session.run(None, {"input_ids": ids})[0]
    if logits.shape[:2] != (batch, sequence) or not np.isfinite(logits).all():
        raise ValueError(f"{path}: logits of shape {logits.shape}, or not all finite")
    return logits.shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.onnx")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--gigabytes", type=float, default=GIGABYTES, help=f"1e9 bytes of data (default {GIGABYTES})")
    size.add_argument("--preset", choices=PRESETS, default="large")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="check the file and run it once")
    args = parser.parse_args()
    if args.preset == "large":
        large(args.out, args.gigabytes, seed=args.seed, dtype=args.dtype)
    else:
        build(args.out, **PRESETS[args.preset], seed=args.seed, dtype=args.dtype)
    print(f"{args.out}: {Path(f'{args.out}.data').stat().st_size} bytes of weights beside it")
    if args.check:
        print(f"checked; logits of shape {check(args.out)}")


if __name__ == "__main__":
    main()
