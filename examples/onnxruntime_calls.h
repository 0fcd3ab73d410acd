/* The few calls of onnxruntime's C interface that the examples make, so that they build without its headers. OrtApi is a
 * table of function pointers that only grows; a call is its position in it. With the headers of onnxruntime at hand,
 * use those. */
#ifndef ONNXRUNTIME_CALLS_H
#define ONNXRUNTIME_CALLS_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
typedef struct {
    const void *const *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;
const OrtApiBase *OrtGetApiBase(void);
#ifdef __cplusplus
}
#endif

enum { ORT_VERSION = 17, ORT_WARNING = 2, ORT_FLOAT = 1, ORT_CPU_ARENA = 1, ORT_DEFAULT_MEMORY = 0 };
typedef void *OrtStatus; /* NULL is success */

#define ORT(api, call) ((ort_##call)(uintptr_t)(api)[ORT_##call])
enum {
    ORT_GetErrorMessage = 2, ORT_CreateEnv = 3, ORT_CreateSession = 7, ORT_Run = 9, ORT_CreateSessionOptions = 10,
    ORT_SetIntraOpNumThreads = 24, ORT_RegisterCustomOpsLibrary = 29, ORT_SessionGetInputTypeInfo = 33,
    ORT_SessionGetInputName = 36, ORT_SessionGetOutputName = 37, ORT_CreateTensorWithData = 49,
    ORT_GetTensorMutableData = 51, ORT_CastTypeInfoToTensorInfo = 55, ORT_GetDimensionsCount = 61, ORT_GetDimensions = 62,
    ORT_GetTensorShapeElementCount = 64, ORT_GetTensorTypeAndShape = 65, ORT_CreateCpuMemoryInfo = 69,
    ORT_GetAllocatorWithDefaultOptions = 78, ORT_ReleaseEnv = 92, ORT_ReleaseMemoryInfo = 94, ORT_ReleaseSession = 95,
    ORT_ReleaseValue = 96, ORT_ReleaseTypeInfo = 98, ORT_ReleaseTensorInfo = 99, ORT_ReleaseSessionOptions = 100,
};
#ifdef _WIN32
typedef wchar_t ort_path;
#else
typedef char ort_path;
#endif
typedef const char *(*ort_GetErrorMessage)(OrtStatus);
typedef OrtStatus (*ort_CreateEnv)(int level, const char *name, void **env);
typedef OrtStatus (*ort_CreateSession)(void *env, const ort_path *model, void *options, void **session);
typedef OrtStatus (*ort_Run)(void *session, void *run_options, const char *const *inputs, const void *const *values,
                             size_t input_count, const char *const *outputs, size_t output_count, void **results);
typedef OrtStatus (*ort_CreateSessionOptions)(void **options);
typedef OrtStatus (*ort_SetIntraOpNumThreads)(void *options, int threads);
typedef OrtStatus (*ort_RegisterCustomOpsLibrary)(void *options, const char *path, void **handle);
typedef OrtStatus (*ort_SessionGetInputTypeInfo)(void *session, size_t index, void **info);
typedef OrtStatus (*ort_SessionGetInputName)(void *session, size_t index, void *allocator, char **name);
typedef OrtStatus (*ort_SessionGetOutputName)(void *session, size_t index, void *allocator, char **name);
typedef OrtStatus (*ort_CreateTensorWithData)(void *memory, void *data, size_t bytes, const int64_t *dims, size_t rank,
                                              int type, void **value);
typedef OrtStatus (*ort_GetTensorMutableData)(void *value, void **data);
typedef OrtStatus (*ort_CastTypeInfoToTensorInfo)(void *info, const void **tensor);
typedef OrtStatus (*ort_GetDimensionsCount)(const void *tensor, size_t *count);
typedef OrtStatus (*ort_GetDimensions)(const void *tensor, int64_t *dims, size_t count);
typedef OrtStatus (*ort_GetTensorShapeElementCount)(const void *tensor, size_t *count);
typedef OrtStatus (*ort_GetTensorTypeAndShape)(const void *value, void **tensor);
typedef OrtStatus (*ort_CreateCpuMemoryInfo)(int allocator, int memory, void **info);
typedef OrtStatus (*ort_GetAllocatorWithDefaultOptions)(void **allocator);
typedef void (*ort_ReleaseEnv)(void *);
typedef void (*ort_ReleaseMemoryInfo)(void *);
typedef void (*ort_ReleaseSession)(void *);
typedef void (*ort_ReleaseValue)(void *);
typedef void (*ort_ReleaseTypeInfo)(void *);
typedef void (*ort_ReleaseTensorInfo)(void *);
typedef void (*ort_ReleaseSessionOptions)(void *);
#endif
