/* libonnxprune_ops: the custom operators with kernels that were compiled ahead of time, for any program that uses
 * onnxruntime. It needs no Python, and no compiler when it runs.
 *
 * ahead.py compiles the driver once for each level of CPU and says by macros which are here; the best that the CPU at
 * hand can run is taken.
 */
#include "_ops.h"
#ifdef __x86_64__
#include <cpuid.h>
#endif

/* as numba calls: what it gives, a fault where there is one, and its arguments; 0 is success */
typedef int32_t (*Compiled)(int64_t *result, void **fault, int64_t, int64_t, int64_t, int64_t, int64_t);
#define COMPILED(name) int32_t name(int64_t *, void **, int64_t, int64_t, int64_t, int64_t, int64_t);
#ifdef HAS_V2
COMPILED(onnxprune_v2)
#endif
#ifdef HAS_V3
COMPILED(onnxprune_v3)
#endif
#ifdef HAS_V4
COMPILED(onnxprune_v4)
#endif
#ifdef HAS_VNNI
COMPILED(onnxprune_vnni)
#endif
#ifdef HAS_NEON
COMPILED(onnxprune_neon)
#endif

static Compiled compiled;
static const char *level = "";

/* of which version of the operators' tables this is: what Python compares with its own */
EXPORT const char *onnxprune_ops_stamp(void);
EXPORT const char *onnxprune_ops_stamp(void) { return STAMP; }

/* what compiled code gives on a fault of its own, which only memory can cause: none of CHECK's faults, no size */
static int64_t call_compiled(int64_t what, int64_t desc, int64_t call, int64_t task, int64_t scratch) {
    int64_t result = 0;
    void *fault = NULL;
    return compiled(&result, &fault, what, desc, call, task, scratch) ? NO_ROOM : result;
}

#ifdef __x86_64__
/* 2, 3 or 4 of the levels of x86-64 that the CPU and the system have, 5 with VNNI besides, 0 below */
static int x86_level(void) {
    const unsigned sse42_popcnt = 1u << 20 | 1u << 23, saves = 1u << 27;
    const unsigned avx_fma_f16c_movbe = 1u << 28 | 1u << 12 | 1u << 29 | 1u << 22;
    const unsigned bmi_avx2_bmi2 = 1u << 3 | 1u << 5 | 1u << 8, lzcnt = 1u << 5;
    const unsigned f_dq_cd_bw_vl = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31, vnni = 1u << 11;
    unsigned a, b, one, seven, more, extended, d, low, high;
    if (!__get_cpuid(1, &a, &b, &one, &d) || (one & sse42_popcnt) != sse42_popcnt) return 0;
    if (!(one & saves) || !__get_cpuid_count(7, 0, &a, &seven, &more, &d)) return 2;
    if (!__get_cpuid(0x80000001, &a, &b, &extended, &d)) return 2;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0)); /* registers that the system saves */
    if ((low & 0x06) != 0x06 || (one & avx_fma_f16c_movbe) != avx_fma_f16c_movbe || !(extended & lzcnt) ||
        (seven & bmi_avx2_bmi2) != bmi_avx2_bmi2)
        return 2;
    if ((low & 0xE6) != 0xE6 || (seven & f_dq_cd_bw_vl) != f_dq_cd_bw_vl) return 3;
    return more & vnni ? 5 : 4;
}
#endif

static void choose_level(void) {
#ifdef __x86_64__
    int most = x86_level();
#endif
#ifdef HAS_VNNI
    if (!compiled && most >= 5) compiled = onnxprune_vnni, level = "vnni";
#endif
#ifdef HAS_V4
    if (!compiled && most >= 4) compiled = onnxprune_v4, level = "v4";
#endif
#ifdef HAS_V3
    if (!compiled && most >= 3) compiled = onnxprune_v3, level = "v3";
#endif
#ifdef HAS_V2
    if (!compiled && most >= 2) compiled = onnxprune_v2, level = "v2";
#endif
#ifdef HAS_NEON
    compiled = onnxprune_neon, level = "neon";
#endif
}

/* the level of the kernels that run here: v2, v3, v4, vnni, neon; "" where there are none for this CPU */
EXPORT const char *onnxprune_ops_level(void);
EXPORT const char *onnxprune_ops_level(void) {
    if (!compiled) choose_level();
    return level;
}

/* bytes of memory that waits for the next run */
EXPORT size_t onnxprune_ops_memory(void);
EXPORT size_t onnxprune_ops_memory(void) { return idle_bytes(); }

static const char *make_ready(void) {
    onnxprune_ops_level();
    if (!compiled) return "onnxprune: this CPU runs none of the kernels of this library: " LEVELS;
    atomic_store(&entry, call_compiled);
#ifndef _WIN32
    pthread_atfork(before_fork, after_fork, after_fork);
#endif
    return NULL;
}

#ifndef HELD
#define HELD -1 /* bits of formats and products that it has: all */
#endif
static int lacks(int format, int kind) { return !(HELD >> (format * N_KINDS + kind) & 1); }

static Status *add_more(Api api, void *domain) { return (void)api, (void)domain, NULL; }

/* ---- arrays of compiled code ---------------------------------------------------------------------------------- */

/* numba's record of an array's memory, of which compiled code reads `data` and counts references in `count` */
typedef struct {
    size_t count;
    void *destructor, *information, *data;
    size_t size;
    void *allocator;
} Memory;

void *NRT_MemInfo_alloc_aligned(size_t size, uint32_t align);
void *NRT_MemInfo_alloc_aligned(size_t size, uint32_t align) {
    (void)align; /* at most a line */
    Memory *m = size > SIZE_MAX / 2 ? NULL : aligned_new(LINE + line(size + 1));
    if (!m) return NULL;
    *m = (Memory){.count = 1, .data = (char *)m + LINE, .size = size};
    return m;
}

void NRT_MemInfo_call_dtor(void *memory);
void NRT_MemInfo_call_dtor(void *memory) { aligned_delete(memory); }
