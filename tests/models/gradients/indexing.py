"""Elements picked by indices, and put there."""

from models.gradients.row import row

for form, x, how, at in [
    ("one", "5,3", "axis = 0", "int64 k = {-2}"),
    ("range", "2,5", "axis = 1", "int64[3] k = {1,2,3}"),
    ("steps", "2,5", "axis = 1", "int64[3] k = {4,2,0}"),
    ("often", "5,3", "axis = 0", "int64[4] k = {1,1,-5,4}"),
    ("table", "5,3", "axis = 0", "int64[2,2] k = {1,1,0,4}"),
    ("inner", "2,5,3", "axis = 1", "int64[2,2] k = {1,1,0,-1}"),
    ("last", "2,5", "axis = -1", "int64[3] k = {0,3,0}"),
    ("none", "2,5", "axis = 1", "int64[0] k = {}"),
]:
    row("Gather", form, f"double[{x}] a", f"y = Gather<{how}>(a, k)", at)
row(
    "Gather",
    "dynamic",
    "double[N,3] a, int64[M] k",
    "y = Gather(a, k)",
    sizes={"N": 4, "M": 3},
    feeds={"k": [0, -1, 0]},
)
row("Gather", "scalar-input", "double[4,3] a, int64 k", "y = Gather<axis = 1>(a, k)", feeds={"k": 2})
row("GatherElements", "twice", "double[3,4] a", "y = GatherElements<axis = 1>(a, k)", "int64[3,2] k = {0,1,-1,3,2,2}")
row("GatherND", "rows", "double[3,4] a", "y = GatherND(a, k)", "int64[3,1] k = {0,0,2}")
row("GatherND", "elements", "double[3,4] a", "y = GatherND(a, k)", "int64[2,2,2] k = {0,0,2,-1,1,1,0,0}")
row("GatherND", "batch", "double[2,3,4] a", "y = GatherND<batch_dims = 1>(a, k)", "int64[2,2,1] k = {0,1,2,2}")
row("GatherND", "batches", "double[2,2,4] a", "y = GatherND<batch_dims = 2>(a, k)", "int64[2,2,1] k = {0,1,2,2}")
for kind in ("none", "add", "mul", "max", "min"):
    how = f'reduction = "{kind}"'
    row(
        "ScatterElements",
        kind,
        "double[3,4] a, double[3,2] b",
        f"y = ScatterElements<axis = 1, {how}>(a, k, b)",
        "int64[3,2] k = {0,1,2,3,2,0}",
        feeds={"b": [[0.31, 1.71], [0.33, 1.73], [0.37, 1.77]]},
    )
    row(
        "ScatterND",
        kind,
        "double[3,4] a, double[2,4] b",
        f"y = ScatterND<{how}>(a, k, b)",
        "int64[2,1] k = {2,0}",
        feeds={"b": [[0.31, 1.71, 0.33, 1.73], [0.37, 1.77, 1.79, 0.35]]},
    )
row("Compress", "axis", "double[3,4] a", "y = Compress<axis = 1>(a, c)", "bool[4] c = {1,0,1,1}")
row("Compress", "flat", "double[2,3] a", "y = Compress(a, c)", "bool[5] c = {0,1,0,0,1}")
row("Unique", "flat", "double[6] a", "y = Unique(a)", feeds={"a": [2, 1, 5, 3, 4, 1.5]}, second=False)
row("TopK", "largest", "double[3,5] a", "y, i = TopK(a, k)", "int64[1] k = {2}")
row("TopK", "axis", "double[5,3] a", "y, i = TopK<axis = 0, largest = 0>(a, k)", "int64[1] k = {2}")
row("OneHot", "values", "double[2] v", "y = OneHot(i, d, v)", "int64[3] i = {0,2,-1}, int64 d = {4}")
row("OneHot", "axis", "double[2] v", "y = OneHot<axis = 0>(i, d, v)", "int64[3] i = {0,2,5}, int64 d = {4}")
row(
    "TensorScatter",
    "linear",
    "double[2,4,3] a, double[2,2,3] b",
    "y = TensorScatter(a, b, w)",
    "int64[2] w = {1,2}",
    opset=24,
)
row(
    "TensorScatter",
    "circular",
    "double[2,2,4,3] a, double[2,2,2,3] b",
    'y = TensorScatter<mode = "circular">(a, b, w)',
    "int64[2] w = {3,2}",
    opset=24,
)
