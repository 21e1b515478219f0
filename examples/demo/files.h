// The demonstration's files: formats.h checks what is read, MLX converts between dtypes and writes .npy, zlib packs PNG.
#ifndef HBN_EXAMPLES_DEMO_FILES_H
#define HBN_EXAMPLES_DEMO_FILES_H

#include <hbn/tensor_view.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

struct Array {
    std::vector<int64_t> shape;
    std::vector<double> values;  // C order
};

// Functions that take a path throw std::runtime_error: one line that names the file and what is wrong with it.

// A .npy of integers, floats or truth values.
Array load_npy(const std::string &path);
// As float64, or float32 for any other dtype: .npy knows no bfloat16.
void save_npy(const std::string &path, const Array &array, hbn::DType dtype);

// Of a .safetensors or .npz file the floats that are `wanted`; the others are named, not read.
struct Weights {
    std::map<std::string, Array> arrays;
    std::vector<std::string> others;
};
Weights load_weights(const std::string &path, const std::set<std::string> &wanted);

// The values in memory as `dtype`, in C order, and back.
std::vector<char> to_bytes(const Array &array, hbn::DType dtype);
Array from_bytes(const std::vector<char> &bytes, const std::vector<int64_t> &shape,
                 hbn::DType dtype);

// A PNG of two rows of thumbnails from (N, C, H, W) tensors: `before` above `after`, each stretched to its own
// range.
void save_comparison(const std::string &path, const Array &before, const Array &after);

#endif
