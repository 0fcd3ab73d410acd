"""Rows of operators that address elements by index, and of parts that are empty."""

from __future__ import annotations

import math

from models.rules.row import conv, free, matmul

# fmt: off


def _table(name: str, below: int, *shape: int) -> str:
    """A constant of indices, each row of the first axis a rotation of 0, 1, ..., `below` - 1."""
    values = (str(k * 7 % below) for k in range(math.prod(shape)))
    return f"int64[{','.join(map(str, shape))}] {name} = {{{','.join(values)}}}"


_BY = "addresses elements by index"
matmul("GatherND", "k = GatherND(h, i)", form="leading axis", also="int64[3,1] i = {1,0,1}")
matmul("GatherND", "k = GatherND<batch_dims = 1>(h, i)", form="batch", also="int64[2,3,1] i = {4,0,2,1,1,3}")
matmul("GatherND", "k = GatherND(h, i)", f"w1:1 pinned: {_BY}", form="all axes", w2="4,2",
       also="int64[4,3] i = {0,0,0,1,4,7,0,2,5,1,1,1}")
free("GatherND", "indices made by a layer", "float[5,3] x",
     "float[3,8] w1, float[2,7] t, int64[1] a = {-1}, int64[1] b = {1}, float zero = {0}",
     "h = MatMul(x, w1) p = Greater(h, zero) i = Cast<to = 7>(p) u = Unsqueeze(i, a) g = GatherND(t, u) "
     "y = ReduceSum(g, b)", "8 channels: w1:1")
for _form, _also, _site in (("one leading axis", "int64[1,1] i = {1}, float[1,5,8] t", 2),
                            ("two leading axes", "int64[3,2] i = {1,0,0,4,1,2}, float[3,8] t", 1)):
    matmul("ScatterND", "k = ScatterND(h, i, t)", f"8 channels: t:{_site} w1:1 w2:0", form=_form, also=_also)
matmul("ScatterND", 'k = ScatterND<reduction = "add">(t, i, h)', "8 channels: t:2 w1:1 w2:0", form="onto a canvas",
       also="int64[2,1] i = {1,3}, float[4,5,8] t")
matmul("ScatterND", "k = ScatterND(h, i, t)", f"w1:1 pinned: {_BY}", form="all axes",
       also="int64[2,3] i = {1,0,3,0,4,7}, float[2] t")
free("GatherElements", "experts that are chosen", "float[5,3] x", "float[3,8] w1, int64[1] n = {2}",
     """h = MatMul(x, w1) v, i = TopK(h, n) p = Softmax(h) y = GatherElements<axis = 1>(p, i)""", "8 experts: w1:1")
matmul("GatherElements", "k = GatherElements<axis = 1>(h, i)", "8 channels: i:2 w1:1 w2:0", form="tokens",
       also=_table("i", 5, 2, 3, 8))
matmul("GatherElements", "k = GatherElements<axis = 1>(h, i)", "6 channels: i:2 w1:1[6] w2:0",
       "2 channels: w1:1[2]", form="tokens, of some channels", also=_table("i", 5, 2, 3, 6), w2="6,4")
matmul("GatherElements", "k = GatherElements<axis = 2>(h, i)", f"w1:1 pinned: {_BY}", form="channels",
       also=_table("i", 8, 2, 5, 4), w2="4,3")
for _op, _opset in (("ScatterElements", 18), ("Scatter", 10)):
    matmul(_op, f"k = {_op}<axis = 1>(h, i, t)", "8 channels: i:2 t:2 w1:1 w2:0", form="tokens", opset=_opset,
           also=f"{_table('i', 5, 1, 3, 8)}, float[1,3,8] t")
    matmul(_op, f"k = {_op}<axis = 1>(h, i, t)", "6 channels: i:2 t:2 w1:1[6] w2:0[6]", "2 channels: w1:1[2] w2:0[2]",
           form="tokens, of some channels", opset=_opset, also=f"{_table('i', 5, 1, 3, 6)}, float[1,3,6] t")
    matmul(_op, f"k = {_op}<axis = 2>(h, i, t)", f"w1:1 pinned: {_BY}", form="channels", opset=_opset,
           also=f"{_table('i', 8, 1, 3, 4)}, float[1,3,4] t")
matmul("TensorScatter", "k = TensorScatter<axis = 1>(c, h)", "8 channels: c:2 w1:1 w2:0", form="tokens", opset=24,
       also="float[2,7,8] c", law="reference", why="onnxruntime has no kernel")
matmul("TensorScatter", "k = TensorScatter<axis = 2>(c, h)", f"w1:1 pinned: {_BY}", form="channels", opset=24,
       also="float[2,5,9] c", w2="9,4", law="reference", why="onnxruntime has no kernel")

# empty parts

_NONE = "int64[1] i = {3}, int64[1] j = {3}, int64[1] a = {1}"
conv("Slice", "s = Slice(h, i, j, a) k = Concat<axis = 1>(s, h)", form="an empty part", also=_NONE)
conv("Slice", "s = Slice(h, i, j, a, t) k = Concat<axis = 1>(h, s)", form="an empty part, backwards",
     also=f"{_NONE}, int64[1] t = {{-1}}")
conv("Slice", "s = Slice(h, i, j, a) r = Reshape(s, n) k = Concat<axis = 2>(h, r)", form="no rows, reshaped",
     also="int64[1] i = {6}, int64[1] j = {9}, int64[1] a = {2}, int64[4] n = {2,8,0,6}")
conv("Split", "s, t = Split<axis = 1>(h, n) k = Concat<axis = 1>(s, t)", form="an empty part",
     also="int64[2] n = {0,8}")
conv("Concat", "k = Concat<axis = 1>(p, h)", form="with an empty constant", also="float[2,0,6,6] p")
