/* Run a sparse model from C: run MODEL LIBRARY INPUT OUTPUT [RUNS]
 *
 * INPUT and OUTPUT hold float32 numbers as they lie in memory: of the model's one input, where a length that the model
 * leaves open is 1, and of its first output. What makes it fast is one call: RegisterCustomOpsLibrary. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../onnxruntime_calls.h"

static const void *const *api;

static void check(OrtStatus status) {
    if (!status) return;
    fprintf(stderr, "%s\n", ORT(api, GetErrorMessage)(status));
    exit(1);
}

int main(int count, char **words) {
    if (count < 5) return fprintf(stderr, "usage: %s MODEL LIBRARY INPUT OUTPUT [RUNS]\n", words[0]), 2;
    api = OrtGetApiBase()->GetApi(ORT_VERSION);
    if (!api) return fprintf(stderr, "onnxruntime %s is too old\n", OrtGetApiBase()->GetVersionString()), 1;

    void *env, *options, *session, *allocator, *memory, *info, *library;
    check(ORT(api, CreateEnv)(ORT_WARNING, "run", &env));
    check(ORT(api, CreateSessionOptions)(&options));
    check(ORT(api, SetIntraOpNumThreads)(options, 1));
    check(ORT(api, RegisterCustomOpsLibrary)(options, words[2], &library)); /* the sparse operators */
    check(ORT(api, CreateSession)(env, words[1], options, &session));

    char *input, *output;
    const void *tensor;
    size_t rank, size = 1;
    int64_t dims[8];
    check(ORT(api, GetAllocatorWithDefaultOptions)(&allocator));
    check(ORT(api, SessionGetInputName)(session, 0, allocator, &input));
    check(ORT(api, SessionGetOutputName)(session, 0, allocator, &output));
    check(ORT(api, SessionGetInputTypeInfo)(session, 0, &info));
    check(ORT(api, CastTypeInfoToTensorInfo)(info, &tensor));
    check(ORT(api, GetDimensionsCount)(tensor, &rank));
    if (rank > 8) return fprintf(stderr, "the input has more than 8 axes\n"), 1;
    check(ORT(api, GetDimensions)(tensor, dims, rank));
    for (size_t i = 0; i < rank; i++) size *= (size_t)(dims[i] = dims[i] < 0 ? 1 : dims[i]);

    float *data = calloc(size, sizeof *data);
    FILE *file = fopen(words[3], "rb");
    if (!data || !file || fread(data, sizeof *data, size, file) != size)
        return fprintf(stderr, "%s: expected %zu float32 numbers\n", words[3], size), 1;
    fclose(file);

    void *x, *y = NULL;
    check(ORT(api, CreateCpuMemoryInfo)(ORT_CPU_ARENA, ORT_DEFAULT_MEMORY, &memory));
    check(ORT(api, CreateTensorWithData)(memory, data, size * sizeof *data, dims, rank, ORT_FLOAT, &x));
    const char *inputs[] = {input}, *outputs[] = {output};
    const void *values[] = {x};
    int runs = count > 5 ? atoi(words[5]) : 1;
    clock_t start = 0;
    for (int i = 0; i <= runs; i++) { /* the first run packs the weights */
        if (i == 1) start = clock();
        if (y) ORT(api, ReleaseValue)(y);
        y = NULL;
        check(ORT(api, Run)(session, NULL, inputs, values, 1, outputs, 1, &y));
    }
    printf("%.3f ms\n", (double)(clock() - start) / CLOCKS_PER_SEC * 1000 / runs);

    void *shape, *result;
    check(ORT(api, GetTensorTypeAndShape)(y, &shape));
    check(ORT(api, GetTensorShapeElementCount)(shape, &size));
    check(ORT(api, GetTensorMutableData)(y, &result));
    file = fopen(words[4], "wb");
    if (!file || fwrite(result, sizeof(float), size, file) != size || fclose(file))
        return fprintf(stderr, "%s: cannot be written\n", words[4]), 1;

    ORT(api, ReleaseTensorInfo)(shape);
    ORT(api, ReleaseTypeInfo)(info);
    ORT(api, ReleaseValue)(y);
    ORT(api, ReleaseValue)(x);
    ORT(api, ReleaseMemoryInfo)(memory);
    ORT(api, ReleaseSession)(session);
    ORT(api, ReleaseSessionOptions)(options);
    ORT(api, ReleaseEnv)(env);
    free(data);
    return 0;
}
