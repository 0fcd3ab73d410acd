// Run a sparse model from C++: run MODEL LIBRARY INPUT OUTPUT
//
// INPUT and OUTPUT hold float32 numbers as they lie in memory; a length that the model leaves open is 1. With the C++
// headers of onnxruntime, all of this is Ort::SessionOptions::RegisterCustomOpsLibrary and what you do anyway.
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../onnxruntime_calls.h"

static const void *const *api = OrtGetApiBase()->GetApi(ORT_VERSION);

static void check(OrtStatus status) {
    if (status) throw std::runtime_error(ORT(api, GetErrorMessage)(status));
}

static std::vector<float> read(const std::string &path, size_t count) {
    std::vector<float> data(count);
    std::ifstream file(path, std::ios::binary);
    if (!file.read(reinterpret_cast<char *>(data.data()), static_cast<std::streamsize>(count * sizeof(float))))
        throw std::runtime_error(path + ": expected " + std::to_string(count) + " float32 numbers");
    return data;
}

int main(int count, char **words) try {
    if (count != 5) throw std::runtime_error("usage: run MODEL LIBRARY INPUT OUTPUT");
    if (!api) throw std::runtime_error("onnxruntime is too old");
    void *env, *options, *session, *allocator, *memory, *info, *library, *x, *y = nullptr, *shape, *result;
    check(ORT(api, CreateEnv)(ORT_WARNING, "run", &env));
    check(ORT(api, CreateSessionOptions)(&options));
    check(ORT(api, RegisterCustomOpsLibrary)(options, words[2], &library));  // the sparse operators
    check(ORT(api, CreateSession)(env, words[1], options, &session));

    char *input, *output;
    const void *tensor;
    size_t rank, size = 1;
    check(ORT(api, GetAllocatorWithDefaultOptions)(&allocator));
    check(ORT(api, SessionGetInputName)(session, 0, allocator, &input));
    check(ORT(api, SessionGetOutputName)(session, 0, allocator, &output));
    check(ORT(api, SessionGetInputTypeInfo)(session, 0, &info));
    check(ORT(api, CastTypeInfoToTensorInfo)(info, &tensor));
    check(ORT(api, GetDimensionsCount)(tensor, &rank));
    std::vector<int64_t> dims(rank);
    check(ORT(api, GetDimensions)(tensor, dims.data(), rank));
    for (int64_t &d : dims) size *= static_cast<size_t>(d = d < 0 ? 1 : d);

    std::vector<float> data = read(words[3], size);
    check(ORT(api, CreateCpuMemoryInfo)(ORT_CPU_ARENA, ORT_DEFAULT_MEMORY, &memory));
    check(ORT(api, CreateTensorWithData)(memory, data.data(), size * sizeof(float), dims.data(), rank, ORT_FLOAT, &x));
    const void *values[] = {x};
    check(ORT(api, Run)(session, nullptr, &input, values, 1, &output, 1, &y));
    check(ORT(api, GetTensorTypeAndShape)(y, &shape));
    check(ORT(api, GetTensorShapeElementCount)(shape, &size));
    check(ORT(api, GetTensorMutableData)(y, &result));
    std::ofstream(words[4], std::ios::binary)
        .write(static_cast<const char *>(result), static_cast<std::streamsize>(size * sizeof(float)));

    ORT(api, ReleaseTensorInfo)(shape);
    ORT(api, ReleaseTypeInfo)(info);
    ORT(api, ReleaseValue)(y);
    ORT(api, ReleaseValue)(x);
    ORT(api, ReleaseMemoryInfo)(memory);
    ORT(api, ReleaseSession)(session);
    ORT(api, ReleaseSessionOptions)(options);
    ORT(api, ReleaseEnv)(env);
    return 0;
} catch (const std::exception &e) {
    std::cerr << e.what() << "\n";
    return 1;
}
