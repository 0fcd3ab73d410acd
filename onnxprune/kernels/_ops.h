/* The custom operators of domain onnxprune, as onnxruntime sees them.
 *
 * onnxruntime loads a library and calls RegisterCustomOps. What is here knows onnxruntime, memory and threads; all
 * arithmetic, the checks of a weight's arrays and the division of work are in one function, `entry`, which numba
 * compiles. Who includes this file says where it comes from: _entry.c has it from Python, compiled on this machine,
 * _library.c from objects that were compiled ahead of time (ahead.py).
 *
 * OrtApi is a table of function pointers that only grows, so positions are stable; the ones used exist since 1.16.
 */
#include <inttypes.h>
#include <stdatomic.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef _WIN32
#include <malloc.h>
#include <windows.h>
#define EXPORT __declspec(dllexport)
#define aligned_new(bytes) _aligned_malloc(bytes, LINE)
#define aligned_delete(p) _aligned_free(p)
#define pause_thread() SwitchToThread()
#else
#include <pthread.h>
#include <sched.h>
#define EXPORT __attribute__((visibility("default")))
#define aligned_new(bytes) aligned_alloc(LINE, bytes)
#define aligned_delete(p) free(p)
#define pause_thread() sched_yield()
#endif

enum { API_VERSION = 17 };
typedef struct Status Status; /* opaque; NULL is success */
typedef const void *const *Api;

#define CALL(api, index, type) ((type)(uintptr_t)(api)[index])
typedef Status *(*CreateStatus)(int code, const char *message);                              /* 0 */
typedef const char *(*GetErrorMessage)(const Status *);                                      /* 2 */
typedef Status *(*CreateDomain)(const char *name, void **domain);                            /* 26 */
typedef Status *(*DomainAdd)(void *domain, const void *op);                                  /* 27 */
typedef Status *(*AddDomain)(void *options, void *domain);                                   /* 28 */
typedef Status *(*GetData)(const void *value, void **data);                                  /* 51 */
typedef Status *(*GetType)(const void *info, int *type);                                     /* 60 */
typedef Status *(*GetRank)(const void *info, size_t *rank);                                  /* 61 */
typedef Status *(*GetDims)(const void *info, int64_t *dims, size_t rank);                    /* 62 */
typedef Status *(*GetTypeAndShape)(const void *value, void **info);                          /* 65 */
typedef Status *(*GetFloat)(const void *info, const char *name, float *out);                 /* 85 */
typedef Status *(*GetInt)(const void *info, const char *name, int64_t *out);                 /* 86 */
typedef Status *(*GetCount)(const void *context, size_t *count);                             /* 88, 89 */
typedef Status *(*GetInput)(const void *context, size_t index, const void **value);          /* 90 */
typedef Status *(*GetOutput)(void *context, size_t index, const int64_t *dims, size_t rank, void **value); /* 91 */
typedef void (*Release)(void *);                                                             /* 93, 99 */
typedef Status *(*GetInts)(const void *info, const char *name, int64_t *out, size_t *size);  /* 163 */
typedef Status *(*GetOutputName)(const void *info, size_t index, char *out, size_t *size);   /* 233 */
typedef Status *(*GetNodeName)(const void *info, char *out, size_t *size);                   /* 244 */
typedef Status *(*GetConstant)(const void *info, size_t index, int *is_constant, const void **value); /* 249 */
typedef Status *(*ParallelFor)(const void *context, void (*task)(void *, size_t), size_t total, size_t batches,
                               void *user);                                                  /* 274 */

enum { FAIL = 1, INVALID_ARGUMENT = 2 };

#include "_tables.h" /* numbers that are Python's too */

enum { N_FLOAT = N_KINDS * N_FORMATS * 2 * N_ACTIVATIONS * 2, N_OPS = N_FLOAT + N_RESULTS };

/* desc and call are addresses of tables; for BOUND and FILL task is a layout, and call, for FILL, the room that it has */
typedef int64_t (*Entry)(int64_t what, int64_t desc, int64_t call, int64_t task, int64_t scratch);
static _Atomic(Entry) entry;
/* what who includes this file has besides: */
static const char *make_ready(void); /* sees to `entry`, once; NULL, or why there can be none */
static int lacks(int format, int kind); /* whether its kernels were left out */
enum { NO_ROOM = -2 }; /* what it gives where it found no memory */

/* ---- memory: buffers are kept for the next run --------------------------------------------------------------- */

typedef struct Buffer {
    struct Buffer *next;
    size_t bytes; /* usable, after the header of one line */
} Buffer;
enum { IDLE = 64 }; /* buffers that wait */
static Buffer *idle;
static int idle_count;
static atomic_flag idle_lock = ATOMIC_FLAG_INIT;
static atomic_int kernels; /* that exist; buffers are not kept beyond the last one */

static void lock(atomic_flag *flag) {
    while (atomic_flag_test_and_set_explicit(flag, memory_order_acquire)) pause_thread();
}
static void unlock(atomic_flag *flag) { atomic_flag_clear_explicit(flag, memory_order_release); }

static size_t line(size_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }

/* Compiled code computes how much memory it needs, and may be wrong: what it gets ends in bytes that it must leave
 * alone. An overrun of up to GUARD bytes is harmless, and becomes an error. */
static void guard(void *memory, size_t bytes) { memset((char *)memory + bytes, GUARD_BYTE, GUARD); }
static int intact(const void *memory, size_t bytes) {
    const unsigned char *end = (const unsigned char *)memory + bytes;
    return end[0] == GUARD_BYTE && !memcmp(end, end + 1, GUARD - 1);
}

/* guarded memory of so many bytes */
static void *take(size_t wanted) {
    if (wanted > SIZE_MAX / 4) return NULL;
    size_t bytes = wanted + GUARD;
    Buffer **best = NULL, *found = NULL;
    lock(&idle_lock);
    for (Buffer **b = &idle; *b; b = &(*b)->next)
        if ((*b)->bytes >= bytes && (*b)->bytes / 4 <= bytes + 65536 && (!best || (*b)->bytes < (*best)->bytes)) best = b;
    if (best) {
        found = *best;
        *best = found->next;
        idle_count--;
    }
    unlock(&idle_lock);
    if (!found) {
        size_t usable = line(bytes + bytes / 8);
        found = aligned_new(LINE + usable);
        if (!found) return NULL;
        found->bytes = usable;
    }
    guard((char *)found + LINE, wanted);
    return (char *)found + LINE;
}

static void give(void *memory) {
    if (!memory) return;
    Buffer *buffer = (Buffer *)((char *)memory - LINE), *dropped = NULL;
    lock(&idle_lock);
    buffer->next = idle;
    idle = buffer;
    if (++idle_count > IDLE) { /* drop the one that waited longest */
        Buffer **b = &idle;
        while ((*b)->next) b = &(*b)->next;
        dropped = *b;
        *b = NULL;
        idle_count--;
    }
    unlock(&idle_lock);
    aligned_delete(dropped);
}

/* of memory that waits for the next run */
static size_t idle_bytes(void) {
    size_t bytes = 0;
    lock(&idle_lock);
    for (Buffer *b = idle; b; b = b->next) bytes += b->bytes;
    unlock(&idle_lock);
    return bytes;
}

static void drop_idle(void) {
    lock(&idle_lock);
    Buffer *buffer = idle;
    idle = NULL;
    idle_count = 0;
    unlock(&idle_lock);
    while (buffer) {
        Buffer *next = buffer->next;
        aligned_delete(buffer);
        buffer = next;
    }
}

#ifndef _WIN32
/* a child never finds the list half changed, or its lock held by a thread that it does not have */
static void before_fork(void) { lock(&idle_lock); }
static void after_fork(void) { unlock(&idle_lock); }
#endif

/* ---- operators ------------------------------------------------------------------------------------------------ */

/* whether the system lets this process use the matrix registers of x86 (AMX): Linux has to be asked */
static int matrix_registers(void) {
#if defined(__linux__) && defined(__x86_64__)
    enum { ASK = 0x1023, TILES_OF_DATA = 18 };
    return syscall(SYS_arch_prctl, ASK, TILES_OF_DATA) == 0;
#else
    return 0;
#endif
}

typedef struct {
    uint32_t version;
    void *(*create_kernel)(void);
    const char *(*name)(const void *op);
    const char *(*provider)(const void *op);
    int (*input_type)(const void *op, size_t index);
    size_t (*input_count)(const void *op);
    int (*output_type)(const void *op, size_t index);
    size_t (*output_count)(const void *op);
    void *compute;
    void (*destroy)(void *kernel);
    int (*input_characteristic)(const void *op, size_t index);
    int (*output_characteristic)(const void *op, size_t index);
    int (*input_memory)(const void *op, size_t index);
    int (*variadic_input_minimum)(const void *op);
    int (*variadic_input_homogeneous)(const void *op);
    int (*variadic_output_minimum)(const void *op);
    int (*variadic_output_homogeneous)(const void *op);
    Status *(*create)(const void *op, Api api, const void *info, void **kernel);
    Status *(*compute_v2)(void *kernel, void *context);
    void *infer_shape;
    int (*first_version)(const void *op);
    int (*last_version)(const void *op);
    void *later[8];
    /* ours */
    char label[40];
    int kind, format, activation, residual, scaled;
    int quantized, result; /* on uint8 or int8, and the type of Y */
} Operator;

static Operator operators[N_OPS];

/* X, values, indices, indptr or positions, [scale], bias, [residual] or x_scale, x_zero_point, [y_scale, y_zero_point] */
static size_t op_inputs(const void *op_) {
    const Operator *op = op_;
    int more = op->quantized ? 2 + 2 * (op->result != AS_FLOAT) : op->residual;
    return (size_t)((op->format == NM ? 4 : 5) + op->scaled + more);
}

typedef struct {
    Api api;
    int64_t desc[DESC_FIELDS];
    _Atomic(void *) packed[LAYOUTS];
    atomic_flag packing;
    int axes; /* of X, where the operator fixes them */
    size_t residual; /* number of that input */
    char name[256];
} Kernel;

static Status *error(Api api, const char *node, const char *format, ...) {
    char text[512];
    int at = snprintf(text, sizeof text, "onnxprune: node %s: ", node);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + at, sizeof text - (size_t)at, format, arguments);
    va_end(arguments);
    return CALL(api, 0, CreateStatus)(INVALID_ARGUMENT, text);
}

static Status *overrun(const Kernel *k, const char *what, int64_t bytes) {
    return error(k->api, k->name, "internal error: %s left its %" PRId64 " bytes; report it with the model", what, bytes);
}

#define TRY(call)                   \
    do {                            \
        Status *status_ = (call);   \
        if (status_) return status_; \
    } while (0)

/* whole characters of UTF-8 as far as there is room, `?` for other bytes */
static void copy_text(char *out, size_t room, const char *from) {
    const unsigned char *in = (const unsigned char *)from;
    while (*in && room > 1) {
        size_t n = *in < 0x80 ? 1 : *in < 0xC2 ? 0 : *in < 0xE0 ? 2 : *in < 0xF0 ? 3 : *in < 0xF5 ? 4 : 0;
        for (size_t i = 1; i < n; i++)
            if ((in[i] & 0xC0) != 0x80) n = 0;
        if ((*in == 0xE0 && in[1] < 0xA0) || (*in == 0xED && in[1] > 0x9F) || (*in == 0xF0 && in[1] < 0x90) ||
            (*in == 0xF4 && in[1] > 0x8F))
            n = 0; /* too long, or no character */
        if (n >= room) break;
        if (n)
            memcpy(out, in, n);
        else
            *out = '?';
        in += n ? n : 1;
        out += n ? n : 1;
        room -= n ? n : 1;
    }
    *out = 0;
}

/* the node's name, or that of its output where it has none */
static void find_name(Kernel *k, const Operator *op, const void *info) {
    size_t size = 0;
    Status *status = CALL(k->api, 244, GetNodeName)(info, NULL, &size);
    int by_output = status || size <= 1;
    if (by_output) {
        if (status) CALL(k->api, 93, Release)(status);
        status = CALL(k->api, 233, GetOutputName)(info, 0, NULL, &size);
    }
    char *text = status || size <= 1 ? NULL : calloc(1, size);
    if (text)
        status = by_output ? CALL(k->api, 233, GetOutputName)(info, 0, text, &size)
                           : CALL(k->api, 244, GetNodeName)(info, text, &size);
    if (status) CALL(k->api, 93, Release)(status);
    copy_text(k->name, sizeof k->name, text && text[0] ? text : op->label);
    free(text);
}

/* dims of a tensor; rank is -1 where there are more than AXES_MOST */
static Status *shape(Api api, const void *value, int *type, int *rank, int64_t dims[AXES_MOST]) {
    void *info = NULL;
    size_t n = 0;
    TRY(CALL(api, 65, GetTypeAndShape)(value, &info));
    Status *status = CALL(api, 60, GetType)(info, type);
    if (!status) status = CALL(api, 61, GetRank)(info, &n);
    *rank = n <= AXES_MOST ? (int)n : -1;
    if (!status && n <= AXES_MOST) status = CALL(api, 62, GetDims)(info, dims, n);
    CALL(api, 99, Release)(info);
    return status;
}

/* the type of an input that is constant, 0 where it is not */
static Status *type_of(Kernel *k, const void *info, size_t index, int *type) {
    int is_constant = 0, rank = 0;
    int64_t dims[AXES_MOST];
    const void *value = NULL;
    *type = 0;
    TRY(CALL(k->api, 249, GetConstant)(info, index, &is_constant, &value));
    return is_constant && value ? shape(k->api, value, type, &rank, dims) : NULL;
}

/* how values are stored, by their type */
static Status *coding(Kernel *k, const Operator *op, const void *info) {
    int type = 0, code = INT8;
    TRY(type_of(k, info, 1, &type));
    if (!op->scaled) {
        code = FLOAT32; /* where it is none of them: constant() compares the types */
        for (int i = 0; i < N_CODES; i++)
            if (i != INT8 && CODES[i] == type) code = i;
    }
    k->desc[CODE] = code;
    return NULL;
}

/* a constant input of the given type and shape; length -1: any */
static Status *constant(Kernel *k, const void *info, size_t index, const char *what, int type, int rank,
                        const int64_t *lengths, int64_t *address, int64_t *first) {
    int is_constant = 0, found_type = 0, found_rank = 0;
    int64_t dims[AXES_MOST] = {0};
    const void *value = NULL;
    void *data = NULL;
    TRY(CALL(k->api, 249, GetConstant)(info, index, &is_constant, &value));
    if (!is_constant || !value) return error(k->api, k->name, "%s must be an initializer or a constant", what);
    TRY(shape(k->api, value, &found_type, &found_rank, dims));
    if (found_type != type) return error(k->api, k->name, "%s has the wrong type", what);
    if (found_rank != rank) return error(k->api, k->name, "%s has %d axes, expected %d", what, found_rank, rank);
    for (int i = 0; i < rank; i++)
        if (lengths[i] >= 0 && dims[i] != lengths[i])
            return error(k->api, k->name, "%s has length %" PRId64 " in axis %d, expected %" PRId64, what, dims[i], i,
                         lengths[i]);
    if (first) *first = dims[0];
    TRY(CALL(k->api, 51, GetData)(value, &data));
    *address = (int64_t)(uintptr_t)data;
    return NULL;
}

/* the attribute's ints, exactly `count` of them, each at least `least` and below 2^31 */
static Status *ints(Kernel *k, const void *info, const char *name, size_t count, int64_t least, int64_t *out) {
    size_t size = count;
    Status *status = CALL(k->api, 163, GetInts)(info, name, out, &size);
    if (status || size != count) {
        if (status) CALL(k->api, 93, Release)(status);
        return error(k->api, k->name, "attribute %s must hold %zu integers", name, count);
    }
    for (size_t i = 0; i < count; i++)
        if (out[i] < least || out[i] > INT32_MAX)
            return error(k->api, k->name, "attribute %s holds %" PRId64 ", expected %" PRId64 " to 2^31 - 1", name,
                         out[i], least);
    return NULL;
}

static Status *number(Kernel *k, const void *info, const char *name, int64_t least, int64_t most, int64_t *out) {
    Status *status = CALL(k->api, 86, GetInt)(info, name, out);
    if (status) {
        CALL(k->api, 93, Release)(status);
        return error(k->api, k->name, "attribute %s is missing", name);
    }
    if (*out < least || *out > most)
        return error(k->api, k->name, "attribute %s is %" PRId64 ", expected %" PRId64 " to %" PRId64, name, *out, least,
                     most);
    return NULL;
}

static Status *real(Kernel *k, const void *info, const char *name, int finite, int64_t *bits) {
    float value = 0;
    uint32_t raw;
    Status *status = CALL(k->api, 85, GetFloat)(info, name, &value);
    if (status) {
        CALL(k->api, 93, Release)(status);
        return error(k->api, k->name, "attribute %s is missing", name);
    }
    if (value != value) return error(k->api, k->name, "attribute %s is not a number", name);
    if (finite && isinf(value)) return error(k->api, k->name, "attribute %s is not finite", name);
    memcpy(&raw, &value, sizeof raw);
    *bits = raw;
    return NULL;
}

/* how X and Y are quantized; next: the first of these inputs */
static Status *quantization(Kernel *k, const Operator *op, const void *info, size_t next) {
    int64_t *d = k->desc;
    int type = 0;
    TRY(type_of(k, info, next + 1, &type));
    d[QUANTIZED] = 1;
    d[RESULT] = op->result;
    d[SIGNED] = type == ONNX_INT8;
    d[SQUARE] = matrix_registers();
    if (d[BLOCK] % 4)
        return error(k->api, k->name, "attribute block holds %" PRId64 " columns, expected a multiple of 4", d[BLOCK]);
    TRY(constant(k, info, next, "x_scale", ONNX_FLOAT, 0, NULL, &d[X_SCALE], NULL));
    TRY(constant(k, info, next + 1, "x_zero_point", d[SIGNED] ? ONNX_INT8 : ONNX_UINT8, 0, NULL, &d[X_ZERO], NULL));
    if (op->result == AS_FLOAT) return NULL;
    TRY(constant(k, info, next + 2, "y_scale", ONNX_FLOAT, 0, NULL, &d[Y_SCALE], NULL));
    return constant(k, info, next + 3, "y_zero_point", op->result == AS_INT8 ? ONNX_INT8 : ONNX_UINT8, 0, NULL,
                    &d[Y_ZERO], NULL);
}

/* everything but the contents of the arrays */
static Status *describe(Kernel *k, const Operator *op, const void *info) {
    int64_t *d = k->desc, dims[4], pair[4];
    d[KIND] = op->kind;
    d[FORMAT] = op->format;
    d[ACTIVATION] = op->activation;
    d[RESIDUAL] = op->residual;
    k->residual = op_inputs(op) - 1;
    d[KH] = d[KW] = d[SH] = d[SW] = d[DH] = d[DW] = d[GROUPS] = 1;
    if (op->kind != CONV) {
        TRY(ints(k, info, "shape", 2, 1, dims));
        d[M] = dims[0];
        d[K] = d[C] = dims[1];
    } else {
        size_t spatial = 2, size = 4;
        Status *status = CALL(k->api, 163, GetInts)(info, "shape", dims, &size);
        if (status) CALL(k->api, 93, Release)(status);
        if (size == 3) spatial = 1;
        TRY(ints(k, info, "shape", 2 + spatial, 1, dims));
        k->axes = 2 + (int)spatial;
        TRY(number(k, info, "group", 1, INT32_MAX, &d[GROUPS]));
        d[M] = dims[0];
        d[C] = dims[1];
        d[KW] = dims[1 + spatial];
        d[KH] = spatial == 2 ? dims[2] : 1;
        if (d[M] % d[GROUPS]) return error(k->api, k->name, "group %" PRId64 " does not divide %" PRId64 " filters",
                                           d[GROUPS], d[M]);
        TRY(ints(k, info, "strides", spatial, 1, pair));
        d[SW] = pair[spatial - 1];
        if (spatial == 2) d[SH] = pair[0];
        TRY(ints(k, info, "dilations", spatial, 1, pair));
        d[DW] = pair[spatial - 1];
        if (spatial == 2) d[DH] = pair[0];
        TRY(ints(k, info, "pads", 2 * spatial, 0, pair));
        d[PL] = pair[spatial - 1];
        d[PR] = pair[2 * spatial - 1];
        if (spatial == 2) {
            d[PT] = pair[0];
            d[PB] = pair[2];
        }
        if ((double)d[C] * (double)d[KH] * (double)d[KW] > INT32_MAX)
            return error(k->api, k->name, "attribute shape is too large");
        d[K] = d[C] * d[KH] * d[KW];
        const int64_t geometry[] = {d[SH], d[SW], d[DH], d[DW], d[PT], d[PL], d[PB], d[PR]};
        for (int i = 0; i < 8; i++)
            if (geometry[i] > STEP_MOST)
                return error(k->api, k->name, "a stride, dilation or pad is %" PRId64 ", above %d", geometry[i],
                             STEP_MOST);
        if ((double)d[KH] * (double)d[DH] > INT32_MAX || (double)d[KW] * (double)d[DW] > INT32_MAX)
            return error(k->api, k->name, "the dilated kernel is too large");
    }
    if ((double)d[M] * (double)d[K] > INT32_MAX)
        return error(k->api, k->name, "attribute shape claims more than 2^31 - 1 weights");
    TRY(real(k, info, "alpha", 1, &d[ALPHA]));
    float low = -HUGE_VALF, high = HUGE_VALF;
    uint32_t raw;
    if (op->activation == RELU) low = 0;
    memcpy(&raw, &low, sizeof raw), d[LOW] = raw;
    memcpy(&raw, &high, sizeof raw), d[HIGH] = raw;
    if (op->activation == CLIP) {
        TRY(real(k, info, "min", 0, &d[LOW]));
        TRY(real(k, info, "max", 0, &d[HIGH]));
        raw = (uint32_t)d[LOW], memcpy(&low, &raw, sizeof low);
        raw = (uint32_t)d[HIGH], memcpy(&high, &raw, sizeof high);
        if (low > high) d[LOW] = d[HIGH]; /* then Clip gives max */
    }
    TRY(coding(k, op, info));
    int type = CODES[d[CODE]];
    size_t next = op->format == NM ? 3 : 4;
    if (op->format != NM) {
        int64_t any[3] = {-1}, rows[1] = {d[M] + 1}, columns = d[K], stored = 1;
        if (op->format == BSR) {
            TRY(ints(k, info, "block", 2, 1, pair));
            for (int i = 0; i < 2; i++)
                if (pair[i] > TILE_MOST)
                    return error(k->api, k->name, "attribute block holds %" PRId64 ", above %d", pair[i], TILE_MOST);
            d[N] = any[1] = pair[0];
            d[BLOCK] = any[2] = pair[1];
            stored = pair[0] * pair[1];
            rows[0] = d[GROUPS] * ((d[M] / d[GROUPS] + pair[0] - 1) / pair[0]) + 1;
            columns = d[KH] * d[KW] * ((d[C] + pair[1] - 1) / pair[1]);
        }
        TRY(constant(k, info, 1, "values", type, op->format == BSR ? 3 : 1, any, &d[VALUES], &d[NNZ]));
        int64_t nnz[1] = {d[NNZ]};
        d[NNZ] *= stored;
        d[INDEX_BYTES] = columns <= NARROW ? 2 : 4;
        TRY(constant(k, info, 2, "indices", d[INDEX_BYTES] == 2 ? ONNX_UINT16 : ONNX_INT32, 1, nnz, &d[INDICES], NULL));
        TRY(constant(k, info, 3, "indptr", ONNX_INT32, 1, rows, &d[INDPTR], NULL));
    } else {
        TRY(number(k, info, "m", 2, BLOCK_MOST, &d[BLOCK]));
        TRY(number(k, info, "n", 1, d[BLOCK], &d[N]));
        int64_t bits = 1, rows = d[M] * d[KH] * d[KW], blocks = (d[C] + d[BLOCK] - 1) / d[BLOCK];
        while ((1 << bits) < d[BLOCK]) bits++;
        int64_t lengths[3] = {rows, blocks, d[N]}, bytes[2] = {rows, (blocks * d[N] * bits + 7) / 8};
        TRY(constant(k, info, 1, "values", type, 3, lengths, &d[VALUES], NULL));
        TRY(constant(k, info, 2, "positions", ONNX_UINT8, 2, bytes, &d[INDICES], NULL));
        d[NNZ] = rows * blocks * d[N];
    }
    int64_t filters[1] = {d[M]};
    if (op->scaled) TRY(constant(k, info, next++, "scale", ONNX_FLOAT, 1, filters, &d[SCALE], NULL));
    TRY(constant(k, info, next++, "bias", op->quantized ? ONNX_INT32 : ONNX_FLOAT, 1, filters, &d[BIAS], NULL));
    return op->quantized ? quantization(k, op, info, next) : NULL;
}

static void destroy(void *kernel) {
    Kernel *k = kernel;
    if (!k) return;
    for (int i = 0; i < LAYOUTS; i++) aligned_delete(atomic_load(&k->packed[i]));
    free(k);
    if (atomic_fetch_sub(&kernels, 1) == 1) drop_idle();
}

static Status *create(const void *op_, Api api, const void *info, void **kernel) {
    const Operator *op = op_;
    *kernel = NULL;
    Kernel *k = calloc(1, sizeof *k);
    if (!k) return error(api, op->label, "out of memory");
    k->api = api;
    atomic_flag_clear(&k->packing);
    atomic_fetch_add(&kernels, 1);
    find_name(k, op, info);
    Status *status = NULL;
    Entry run = atomic_load(&entry);
    if (lacks(op->format, op->kind))
        status = error(api, k->name, "%s is not in this library, which was made for the operators of another model; "
                       "onnxprune export-library makes one with all", op->label);
    else if (!run)
        status = error(api, k->name, "the kernels are not compiled; call onnxprune.get_library_path() first");
    else
        status = describe(k, op, info);
    if (!status) {
        int64_t fault = run(CHECK, (int64_t)(uintptr_t)k->desc, 0, 0, 0);
        if (fault < 0 || fault >= FAULT_KINDS)
            status = error(api, k->name, "out of memory");
        else if (fault != NO_FAULT)
            status = error(api, k->name, FAULTS[fault], k->desc[DETAIL]);
    }
    if (status)
        destroy(k);
    else
        *kernel = k;
    return status;
}

/* the weight in a layout, packed; *memory is NULL where there is none left */
static Status *pack(Kernel *k, int64_t layout, void **memory) {
    Entry run = atomic_load(&entry);
    int64_t desc = (int64_t)(uintptr_t)k->desc, most = run(BOUND, desc, 0, layout, 0);
    if (most <= 0 || most > ELEMENTS_MOST) return NULL;
    char *draft = aligned_new(line((size_t)most + GUARD));
    if (!draft) return NULL;
    guard(draft, (size_t)most);
    int64_t used = run(FILL, desc, most, layout, (int64_t)(uintptr_t)draft);
    int fits = used > 0 && used <= most && intact(draft, (size_t)most);
    if (fits && (*memory = aligned_new(line((size_t)used)))) memcpy(*memory, draft, (size_t)used);
    aligned_delete(draft);
    return fits || used == NO_ROOM ? NULL : overrun(k, "the packed weight", most);
}

/* the weight as a kernel reads it; made on first use, by one thread */
static Status *packed(Kernel *k, int64_t layout, int64_t *address) {
    Status *status = NULL;
    void *memory = atomic_load(&k->packed[layout]);
    if (!memory) {
        lock(&k->packing);
        memory = atomic_load(&k->packed[layout]);
        if (!memory) {
            status = pack(k, layout, &memory);
            atomic_store(&k->packed[layout], memory);
        }
        unlock(&k->packing);
    }
    *address = (int64_t)(uintptr_t)memory;
    if (!status && !memory) status = error(k->api, k->name, "out of memory");
    return status;
}

typedef struct {
    int64_t *desc, *call;
    int64_t what;
    size_t scratch_bytes;
    atomic_int failed; /* NO_MEMORY or OVERRAN */
} Work;
enum { NO_MEMORY = 1, OVERRAN };

static void task(void *user, size_t index) {
    Work *w = user;
    void *scratch = w->scratch_bytes ? take(w->scratch_bytes) : NULL;
    if (w->scratch_bytes && !scratch) {
        atomic_store(&w->failed, NO_MEMORY);
        return;
    }
    atomic_load(&entry)(w->what, (int64_t)(uintptr_t)w->desc, (int64_t)(uintptr_t)w->call, (int64_t)index,
                        (int64_t)(uintptr_t)scratch);
    if (scratch && !intact(scratch, w->scratch_bytes)) atomic_store(&w->failed, OVERRAN);
    give(scratch);
}

static Status *parallel(Kernel *k, void *context, int64_t *call, int64_t what, int64_t tasks, int64_t scratch_bytes) {
    Work work = {k->desc, call, what, (size_t)scratch_bytes, 0};
    if (tasks == 1)
        task(&work, 0);
    else
        TRY(CALL(k->api, 274, ParallelFor)(context, task, (size_t)tasks, 0, &work));
    int failed = atomic_load(&work.failed);
    if (failed == OVERRAN) return overrun(k, "a task", scratch_bytes);
    return failed ? error(k->api, k->name, "out of memory") : NULL;
}

/* the product of the dims; -1 where X could not lie in memory */
static int64_t product(const int64_t *dims, int count) {
    double size = 1;
    int64_t exact = 1;
    for (int i = 0; i < count; i++) {
        if (dims[i] < 0) return -1;
        size *= (double)dims[i];
    }
    if (size > (double)ELEMENTS_MOST) return -1;
    for (int i = 0; i < count; i++) exact = size > 0 ? exact * dims[i] : 0;
    return exact;
}

/* dims of Y from those of X; fills in the geometry of the call */
static Status *geometry(Kernel *k, int rank, const int64_t *dims, int64_t *out, int64_t *call) {
    const int64_t *d = k->desc;
    for (int i = 0; i < rank; i++) out[i] = dims[i];
    call[BATCH] = 1;
    if (d[KIND] == RIGHT) {
        if (rank < 1 || dims[rank - 1] != d[K])
            return error(k->api, k->name, "X has length %" PRId64 " in its last axis, expected %" PRId64,
                         rank > 0 ? dims[rank - 1] : (int64_t)-1, d[K]);
        call[BATCH] = product(dims, rank - 1);
        out[rank - 1] = d[M];
    } else if (d[KIND] == LEFT) {
        if (rank < 2 || dims[rank - 2] != d[K])
            return error(k->api, k->name, "X has length %" PRId64 " in its last axis but one, expected %" PRId64,
                         rank > 1 ? dims[rank - 2] : (int64_t)-1, d[K]);
        call[BATCH] = product(dims, rank - 2);
        out[rank - 2] = d[M];
        call[HEIGHT] = call[OUT_HEIGHT] = 1;
        call[WIDTH] = call[OUT_WIDTH] = dims[rank - 1];
    } else {
        if (rank != k->axes) return error(k->api, k->name, "X has %d axes, expected %d", rank, k->axes);
        if (dims[1] != d[C] * d[GROUPS])
            return error(k->api, k->name, "X has %" PRId64 " channels, expected %" PRId64, dims[1], d[C] * d[GROUPS]);
        call[BATCH] = dims[0];
        call[HEIGHT] = rank == 4 ? dims[2] : 1;
        call[WIDTH] = dims[rank - 1];
        int64_t tall = call[HEIGHT] + d[PT] + d[PB] - d[DH] * (d[KH] - 1) - 1;
        int64_t wide = call[WIDTH] + d[PL] + d[PR] - d[DW] * (d[KW] - 1) - 1;
        if (tall < 0 || wide < 0) return error(k->api, k->name, "the kernel is larger than the padded X");
        call[OUT_HEIGHT] = tall / d[SH] + 1;
        call[OUT_WIDTH] = wide / d[SW] + 1;
        out[1] = d[M];
        if (rank == 4) out[2] = call[OUT_HEIGHT];
        out[rank - 1] = call[OUT_WIDTH];
        /* the planes of driver.py; their bytes must not overflow */
        double tall_kernel = 1 + (double)(d[KH] - 1) * (double)d[DH];
        double phases = (double)d[SH] < tall_kernel ? (double)d[SH] : tall_kernel;
        double rows = (double)call[OUT_HEIGHT] + tall_kernel / (double)d[SH] + 1;
        double planes = (double)dims[0] * (double)dims[1] * (double)d[KW] * phases;
        if (planes * rows * (double)call[OUT_WIDTH] > (double)ELEMENTS_MOST) return error(k->api, k->name, "X is too large");
    }
    if (call[BATCH] < 0 || product(out, rank) < 0 || product(dims, rank) < 0)
        return error(k->api, k->name, "X is too large");
    return NULL;
}

static Status *compute(void *kernel, void *context) {
    Kernel *k = kernel;
    Entry run = atomic_load(&entry);
    int64_t call[CALL_FIELDS] = {0}, dims[AXES_MOST], out[AXES_MOST], added[AXES_MOST];
    int64_t desc_address = (int64_t)(uintptr_t)k->desc, call_address = (int64_t)(uintptr_t)call;
    const void *x = NULL;
    void *y = NULL, *data = NULL;
    int type = 0, rank = 0;
    TRY(CALL(k->api, 90, GetInput)(context, 0, &x));
    if (!x) return error(k->api, k->name, "X is missing");
    TRY(shape(k->api, x, &type, &rank, dims));
    int wanted = k->desc[QUANTIZED] ? (k->desc[SIGNED] ? ONNX_INT8 : ONNX_UINT8) : ONNX_FLOAT;
    if (type != wanted || rank < 0)
        return error(k->api, k->name, "X must be %s with at most %d axes",
                     wanted == ONNX_FLOAT ? "float32" : "of the type of x_zero_point,", AXES_MOST);
    TRY(geometry(k, rank, dims, out, call));
    TRY(CALL(k->api, 51, GetData)(x, &data));
    call[X] = (int64_t)(uintptr_t)data;
    if (k->desc[RESIDUAL]) {
        const void *residual = NULL;
        int added_rank = 0;
        TRY(CALL(k->api, 90, GetInput)(context, k->residual, &residual));
        if (!residual) return error(k->api, k->name, "residual is missing");
        TRY(shape(k->api, residual, &type, &added_rank, added));
        if (type != ONNX_FLOAT || added_rank != rank || memcmp(added, out, (size_t)rank * sizeof *out))
            return error(k->api, k->name, "residual must be float32 of the shape of Y");
        TRY(CALL(k->api, 51, GetData)(residual, &data));
        call[ADDED] = (int64_t)(uintptr_t)data;
    }
    TRY(CALL(k->api, 91, GetOutput)(context, 0, out, (size_t)rank, &y));
    TRY(CALL(k->api, 51, GetData)(y, &data));
    call[Y] = (int64_t)(uintptr_t)data;
    for (int i = 0; i < rank; i++)
        if (out[i] == 0) return NULL;
    run(CHOOSE, desc_address, call_address, 0, 0);
    TRY(packed(k, call[LAYOUT], &call[PACK]));
    run(PLAN, desc_address, call_address, 0, 0);
    void *shared = take((size_t)call[SHARED_BYTES]);
    if (!shared) return error(k->api, k->name, "out of memory");
    call[SHARED] = (int64_t)(uintptr_t)shared;
    Status *status = parallel(k, context, call, PREPARE, call[PREPARE_TASKS], 0);
    if (!status) status = parallel(k, context, call, RUN, call[TASKS], call[TASK_BYTES]);
    if (!status && !intact(shared, (size_t)call[SHARED_BYTES]))
        status = overrun(k, "X as the kernels read it", call[SHARED_BYTES]);
    give(shared);
    return status;
}

static const char *op_name(const void *op) { return ((const Operator *)op)->label; }
static const char *op_provider(const void *op) { return (void)op, NULL; }
static int op_output_type(const void *op_, size_t index) {
    const Operator *op = op_;
    return (void)index, op->result == AS_UINT8 ? ONNX_UINT8 : op->result == AS_INT8 ? ONNX_INT8 : ONNX_FLOAT;
}
static int op_input_type(const void *op_, size_t index) {
    const Operator *op = op_;
    if (op->quantized && (index == 0 || index == 7)) return 0; /* uint8 or int8, as x_zero_point */
    if (op->quantized && index == 5) return ONNX_INT32;
    if (op->quantized && index == 9) return op_output_type(op, 0);
    if (index == 1) return op->scaled ? ONNX_INT8 : 0; /* float32, bfloat16 or float16 */
    if (op->format != NM && index == 2) return 0; /* uint16 or int32 */
    if (op->format != NM && index == 3) return ONNX_INT32;
    return op->format == NM && index == 2 ? ONNX_UINT8 : ONNX_FLOAT;
}
static size_t op_outputs(const void *op) { return (void)op, 1; }
static int op_required(const void *op, size_t index) { return (void)op, (void)index, 0; }
static int op_one(const void *op) { return (void)op, 1; }
static int op_newest(const void *op) { return (void)op, INT32_MAX; }

static void fill_operators(void) {
    for (int i = 0; i < N_OPS; i++) {
        Operator *op = &operators[i];
        if (i < N_FLOAT) {
            op->activation = i % N_ACTIVATIONS;
            op->residual = i / N_ACTIVATIONS % 2;
            op->kind = i / (2 * N_ACTIVATIONS) % N_KINDS;
            op->format = i / (2 * N_ACTIVATIONS * N_KINDS) % N_FORMATS;
            op->scaled = i / (2 * N_ACTIVATIONS * N_KINDS * N_FORMATS);
        } else {
            op->quantized = op->scaled = 1;
            op->kind = RIGHT;
            op->format = BSR;
            op->result = i - N_FLOAT;
        }
        snprintf(op->label, sizeof op->label, "%s%s%s%s%s%s", FORMATS[op->format],
                 op->quantized ? "Quantized" : op->scaled ? "Scaled" : "", KINDS[op->kind], op->residual ? "Add" : "",
                 ACTIVATIONS[op->activation], RESULTS[op->result]);
        op->version = API_VERSION;
        op->name = op_name;
        op->provider = op_provider;
        op->input_type = op_input_type;
        op->input_count = op_inputs;
        op->output_type = op_output_type;
        op->output_count = op_outputs;
        op->destroy = destroy;
        op->input_characteristic = op->output_characteristic = op->input_memory = op_required;
        op->variadic_input_minimum = op->variadic_input_homogeneous = op_one;
        op->variadic_output_minimum = op->variadic_output_homogeneous = op_one;
        op->create = create;
        op->compute_v2 = compute;
        op->first_version = op_one;
        op->last_version = op_newest;
    }
}

/* what who includes this file has besides: */
static Status *add_more(Api api, void *domain); /* operators of its own */

/* One domain serves every session; onnxruntime keeps a pointer to it. */
EXPORT Status *RegisterCustomOps(void *options, const void *const *api_base) {
    static atomic_flag guard = ATOMIC_FLAG_INIT;
    static void *domain;
    Api (*of)(uint32_t) = (Api(*)(uint32_t))(uintptr_t)api_base[0];
    Api api = of(API_VERSION);
    if (!api) /* the first version can at least say so */
        return CALL(of(1), 0, CreateStatus)(FAIL, "onnxprune: its operators need onnxruntime 1.17 or newer");
    Status *status = NULL;
    lock(&guard);
    const char *missing = domain ? NULL : make_ready();
    if (missing) status = CALL(api, 0, CreateStatus)(FAIL, missing);
    if (!domain && !status) {
        void *fresh = NULL;
        fill_operators();
        status = CALL(api, 26, CreateDomain)(DOMAIN_NAME, &fresh);
        for (int i = 0; !status && i < N_OPS; i++) status = CALL(api, 27, DomainAdd)(fresh, &operators[i]);
        if (!status) status = add_more(api, fresh);
        if (!status) domain = fresh;
    }
    if (!status) status = CALL(api, 28, AddDomain)(options, domain);
    unlock(&guard);
    return status;
}

