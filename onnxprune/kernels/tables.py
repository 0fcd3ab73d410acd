"""The numbers that the C part and the compiled code share: fields of tables, codes, limits, faults of a weight.

`desc` describes a layer and lives as long as its session, `call` describes one run; both are tables of int64. Every
number here is a macro in `_tables.h`, which header.py writes and `_entry.c` includes; there is no other list of them.
"""

from __future__ import annotations

from onnxprune.kernels import names

# fields of desc
DESC_FIELDS = 40
(
    KIND, FORMAT, M, K, GROUPS, C, KH, KW, SH, SW, PT, PL, DH, DW, N, BLOCK, ACTIVATION, RESIDUAL, ALPHA, LOW, HIGH,
    VALUES, CODE, SCALE, INDICES, INDPTR, BIAS, NNZ, INDEX_BYTES, DETAIL, PB, PR, QUANTIZED, RESULT, SIGNED, X_SCALE,
    X_ZERO, Y_SCALE, Y_ZERO, SQUARE,
) = range(DESC_FIELDS)  # fmt: skip
# fields of call
CALL_FIELDS = 18
(
    X, Y, ADDED, BATCH, HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH, PACK, LAYOUT, SHARED, PREPARE_TASKS, TASKS, SHARED_BYTES,
    TASK_BYTES, COLUMNS, PANELS, UNITS,
) = range(CALL_FIELDS)  # fmt: skip

# KIND, FORMAT, ACTIVATION, CODE, RESULT: places in the lists of the file format
RIGHT, LEFT, CONV = (names.PRODUCTS.index(n) for n in ("MatMul", "LeftMatMul", "Conv"))
CSR, NM, BSR = (names.STORAGES.index(n) for n in ("Csr", "Nm", "Bsr"))  # N of BLOCK; tiles of N x BLOCK
NOTHING, RELU, CLIP = (names.ACTIVATIONS.index(n) for n in ("", "Relu", "Clip"))
FLOAT32, BFLOAT16, FLOAT16, INT8 = (  # INT8 alone has a scale
    tuple(names.VALUES).index(n) for n in ("float32", "bfloat16", "float16", "int8")
)
AS_FLOAT, AS_UINT8, AS_INT8 = (tuple(names.RESULTS).index(n) for n in ("", "Uint8", "Int8"))

LAYOUTS = 7
SPMM, PERMUTE, EXPAND, GATHER, TILES, QUADS, SQUARES = range(LAYOUTS)  # LAYOUT
CHECK, CHOOSE, BOUND, FILL, PLAN, PREPARE, RUN = range(7)  # what the entry is asked for

LINE = 64  # bytes of a line of the cache; all memory starts at one
GUARD = 1024  # bytes behind memory that compiled code writes, a multiple of LINE: whoever changes them wrote too far
GUARD_BYTE = 0xA5  # which they all are
OVERRUN = -1  # what FILL gives instead of writing too far
AXES_MOST = 8  # axes of X
ELEMENTS_MOST = 1 << 40  # of a tensor: 4 TiB
NARROW = names.WIDE  # columns up to which indices are uint16
TILE_MOST = names.MAX_TILE  # rows, or columns, of a tile
BLOCK_MOST = 256  # m of n:m
STEP_MOST = 1 << 20  # a stride, dilation or pad

# what is wrong with a weight
FAULT_KINDS = 18
(
    NO_FAULT, BAD_VALUE, BAD_BIAS, BAD_START, BAD_ORDER, BAD_COUNT, BAD_END, BAD_INDEX, BAD_INDEX_ORDER, BAD_POSITION,
    BAD_POSITION_ORDER, VALUE_BEYOND_ROW, BAD_REST, BAD_SCALE, VALUE_BEYOND_EDGE,
    BAD_X_SCALE, BAD_Y_SCALE, BAD_FACTOR,
) = range(FAULT_KINDS)  # fmt: skip
FAULTS = {  # {} is desc[DETAIL]
    NO_FAULT: "",
    BAD_VALUE: "values[{}] is not finite",
    BAD_BIAS: "bias[{}] is not finite",
    BAD_START: "indptr does not start at 0",
    BAD_ORDER: "indptr falls after row {}",
    BAD_COUNT: "indptr exceeds the number of values after row {}",
    BAD_END: "indptr does not end at the number of values",
    BAD_INDEX: "indices[{}] is outside the row",
    BAD_INDEX_ORDER: "indices[{}] does not rise within its row",
    BAD_POSITION: "positions of row {} lie outside their block",
    BAD_POSITION_ORDER: "positions of row {} do not rise within a block",
    VALUE_BEYOND_ROW: "values of row {} lie beyond its end",
    BAD_REST: "positions of row {} have bits set after the last one",
    BAD_SCALE: "scale[{}] is not a finite number above 0",
    VALUE_BEYOND_EDGE: "values of tile {} lie beyond the edges of the weight",
    BAD_X_SCALE: "x_scale is not a finite number above 0",
    BAD_Y_SCALE: "y_scale is not a finite number above 0",
    BAD_FACTOR: "alpha, x_scale, scale[{}] and y_scale make a factor that is not finite",
}
