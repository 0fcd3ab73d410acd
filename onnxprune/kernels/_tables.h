/* Written by `python -m onnxprune.kernels.header` from tables.py; edit that. */
#define STAMP "63b95da74bbaefd6"
#define DESC_FIELDS 40
#define KIND 0
#define FORMAT 1
#define M 2
#define K 3
#define GROUPS 4
#define C 5
#define KH 6
#define KW 7
#define SH 8
#define SW 9
#define PT 10
#define PL 11
#define DH 12
#define DW 13
#define N 14
#define BLOCK 15
#define ACTIVATION 16
#define RESIDUAL 17
#define ALPHA 18
#define LOW 19
#define HIGH 20
#define VALUES 21
#define CODE 22
#define SCALE 23
#define INDICES 24
#define INDPTR 25
#define BIAS 26
#define NNZ 27
#define INDEX_BYTES 28
#define DETAIL 29
#define PB 30
#define PR 31
#define QUANTIZED 32
#define RESULT 33
#define SIGNED 34
#define X_SCALE 35
#define X_ZERO 36
#define Y_SCALE 37
#define Y_ZERO 38
#define SQUARE 39
#define CALL_FIELDS 18
#define X 0
#define Y 1
#define ADDED 2
#define BATCH 3
#define HEIGHT 4
#define WIDTH 5
#define OUT_HEIGHT 6
#define OUT_WIDTH 7
#define PACK 8
#define LAYOUT 9
#define SHARED 10
#define PREPARE_TASKS 11
#define TASKS 12
#define SHARED_BYTES 13
#define TASK_BYTES 14
#define COLUMNS 15
#define PANELS 16
#define UNITS 17
#define RIGHT 0
#define LEFT 1
#define CONV 2
#define CSR 0
#define NM 1
#define BSR 2
#define NOTHING 0
#define RELU 1
#define CLIP 2
#define FLOAT32 0
#define BFLOAT16 1
#define FLOAT16 2
#define INT8 3
#define AS_FLOAT 0
#define AS_UINT8 1
#define AS_INT8 2
#define LAYOUTS 7
#define SPMM 0
#define PERMUTE 1
#define EXPAND 2
#define GATHER 3
#define TILES 4
#define QUADS 5
#define SQUARES 6
#define CHECK 0
#define CHOOSE 1
#define BOUND 2
#define FILL 3
#define PLAN 4
#define PREPARE 5
#define RUN 6
#define LINE 64
#define GUARD 1024
#define GUARD_BYTE 165
#define OVERRUN (-1)
#define AXES_MOST 8
#define ELEMENTS_MOST INT64_C(1099511627776)
#define NARROW 65536
#define TILE_MOST 64
#define BLOCK_MOST 256
#define STEP_MOST 1048576
#define FAULT_KINDS 18
#define NO_FAULT 0
#define BAD_VALUE 1
#define BAD_BIAS 2
#define BAD_START 3
#define BAD_ORDER 4
#define BAD_COUNT 5
#define BAD_END 6
#define BAD_INDEX 7
#define BAD_INDEX_ORDER 8
#define BAD_POSITION 9
#define BAD_POSITION_ORDER 10
#define VALUE_BEYOND_ROW 11
#define BAD_REST 12
#define BAD_SCALE 13
#define VALUE_BEYOND_EDGE 14
#define BAD_X_SCALE 15
#define BAD_Y_SCALE 16
#define BAD_FACTOR 17
#define ONNX_FLOAT 1
#define ONNX_UINT8 2
#define ONNX_INT8 3
#define ONNX_UINT16 4
#define ONNX_INT32 6
#define N_KINDS 3
#define N_FORMATS 3
#define N_ACTIVATIONS 7
#define N_RESULTS 3
#define N_CODES 4
#define DOMAIN_NAME "onnxprune"
static const char *const KINDS[] = {
    "MatMul",
    "LeftMatMul",
    "Conv",
};
static const char *const FORMATS[] = {
    "Csr",
    "Nm",
    "Bsr",
};
static const char *const ACTIVATIONS[] = {
    "",
    "Relu",
    "Clip",
    "HardSwish",
    "Silu",
    "Gelu",
    "FastGelu",
};
static const char *const RESULTS[] = {
    "",
    "Uint8",
    "Int8",
};
static const int CODES[] = {
    1,
    16,
    10,
    3,
};
static const char *const FAULTS[] = {
    "",
    "values[%" PRId64 "] is not finite",
    "bias[%" PRId64 "] is not finite",
    "indptr does not start at 0",
    "indptr falls after row %" PRId64 "",
    "indptr exceeds the number of values after row %" PRId64 "",
    "indptr does not end at the number of values",
    "indices[%" PRId64 "] is outside the row",
    "indices[%" PRId64 "] does not rise within its row",
    "positions of row %" PRId64 " lie outside their block",
    "positions of row %" PRId64 " do not rise within a block",
    "values of row %" PRId64 " lie beyond its end",
    "positions of row %" PRId64 " have bits set after the last one",
    "scale[%" PRId64 "] is not a finite number above 0",
    "values of tile %" PRId64 " lie beyond the edges of the weight",
    "x_scale is not a finite number above 0",
    "y_scale is not a finite number above 0",
    "alpha, x_scale, scale[%" PRId64 "] and y_scale make a factor that is not finite",
};
