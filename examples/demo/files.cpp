#include "files.h"

#include "formats.h"

#include <mlx/io.h>
#include <mlx/ops.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <memory>
#include <stdexcept>

namespace mx = mlx::core;

using formats::Element;
using formats::quoted;
using formats::Source;

namespace {

[[noreturn]] void fail(const std::string &path, const std::string &what) {
    throw std::runtime_error(path + ": " + what);
}

Array to_array(const mx::array &source) {
    mx::array dense = mx::contiguous(mx::astype(source, mx::float64));
    dense.eval();
    Array result;
    result.shape.assign(dense.shape().begin(), dense.shape().end());
    result.values.assign(dense.data<double>(), dense.data<double>() + dense.size());
    return result;
}

mx::array from_bytes(const std::vector<char> &bytes, const mx::Shape &shape, Element element) {
    const auto typed = [&](auto zero, mx::Dtype dtype) {
        return mx::array(reinterpret_cast<const decltype(zero) *>(bytes.data()), shape, dtype);
    };
    switch (element) {
    case Element::boolean:
        return mx::not_equal(typed(uint8_t(), mx::uint8), mx::array(uint8_t(0)));
    case Element::int8:
        return typed(int8_t(), mx::int8);
    case Element::int16:
        return typed(int16_t(), mx::int16);
    case Element::int32:
        return typed(int32_t(), mx::int32);
    case Element::int64:
        return typed(int64_t(), mx::int64);
    case Element::uint8:
        return typed(uint8_t(), mx::uint8);
    case Element::uint16:
        return typed(uint16_t(), mx::uint16);
    case Element::uint32:
        return typed(uint32_t(), mx::uint32);
    case Element::uint64:
        return typed(uint64_t(), mx::uint64);
    case Element::float16:
        return typed(mx::float16_t(), mx::float16);
    case Element::bfloat16:
        return typed(mx::bfloat16_t(), mx::bfloat16);
    case Element::float32:
        return typed(float(), mx::float32);
    case Element::float64:
        return typed(double(), mx::float64);
    case Element::other:
        break;
    }
    throw std::logic_error("an element that cannot be read");
}

Array read(const Source &source, const formats::Entry &entry) {
    if (entry.element == Element::other) {
        throw std::runtime_error("has dtype " + quoted(entry.dtype) +
                                 ", which this program doesn't read");
    }
    if (entry.bytes == 0) {
        return {entry.shape, {}};
    }
    std::vector<char> bytes = source.read(entry.offset, entry.bytes);
    if (entry.big_endian) {
        const auto size = std::ptrdiff_t(formats::size_of(entry.element));
        for (auto at = bytes.begin(); at != bytes.end(); at += size) {
            std::reverse(at, at + size);
        }
    }
    mx::Shape shape(entry.shape.begin(), entry.shape.end());
    if (!entry.fortran_order) {
        return to_array(from_bytes(bytes, shape, entry.element));
    }
    std::reverse(shape.begin(), shape.end());
    return to_array(mx::transpose(from_bytes(bytes, shape, entry.element)));
}

Array read_weight(const Source &source, const formats::Entry &entry) {
    if (!formats::is_float(entry.element)) {
        throw std::runtime_error("has dtype " + quoted(entry.dtype) + ", weights are floats");
    }
    return read(source, entry);
}

// Calls read() and says of which file, or of which entry of it, an exception is.
template<typename Read>
auto naming(const std::string &what, Read read) {
    try {
        return read();
    } catch (const std::exception &e) {
        throw std::runtime_error(what + ": " + e.what());
    }
}

mx::Dtype dtype_of(hbn::DType dtype) {
    switch (dtype) {
    case hbn::DType::float64:
        return mx::float64;
    case hbn::DType::bfloat16:
        return mx::bfloat16;
    case hbn::DType::float16:
        return mx::float16;
    default:
        return mx::float32;
    }
}

mx::array from_array(const Array &array, mx::Dtype dtype) {
    const mx::Shape shape(array.shape.begin(), array.shape.end());
    mx::array result = mx::astype(mx::array(array.values.data(), shape, mx::float64), dtype);
    result.eval();
    return result;
}

// Collects what MLX writes.
class MemoryWriter : public mx::io::Writer {
public:
    bool is_open() const override {
        return true;
    }
    bool good() const override {
        return true;
    }
    size_t tell() override {
        return bytes.size();
    }
    void seek(int64_t, std::ios_base::seekdir) override {
        throw std::logic_error("a .npy is written from its beginning to its end");
    }
    void write(const char *data, size_t size) override {
        bytes.insert(bytes.end(), data, data + size);
    }
    std::string label() const override {
        return "memory";
    }

    std::vector<char> bytes;
};

// Every step may be the one that fails: a full disk often shows only when buffers are flushed. What is left of a file
// is removed, so that nobody takes it for the whole.
template<typename Byte>
void write_file(const std::string &path, const std::vector<Byte> &bytes) {
    std::FILE *const file = std::fopen(path.c_str(), "wb");
    bool written = file && std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
    written = written && std::fflush(file) == 0;
    int error = errno;
    if (file && std::fclose(file) != 0 && written) {
        written = false;
        error = errno;
    }
    if (!written) {
        std::error_code ignored;
        if (file && std::filesystem::is_regular_file(path, ignored)) {
            std::filesystem::remove(path, ignored);
        }
        fail(path, std::string("cannot be written: ") + std::strerror(error));
    }
}

bool ends_with(const std::string &text, const std::string &end) {
    return text.size() >= end.size() &&
           text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// An RGB picture, rows from the top.
struct Picture {
    size_t width, height;
    std::vector<uint8_t> pixels;

    Picture(size_t width, size_t height)
        : width(width), height(height), pixels(width * height * 3, 255) {
    }
    uint8_t *at(size_t x, size_t y) {
        return pixels.data() + (y * width + x) * 3;
    }
};

void append_big_endian(std::vector<uint8_t> &bytes, size_t value) {
    for (int shift = 24; shift >= 0; shift -= 8) {
        bytes.push_back(uint8_t(value >> shift));
    }
}

void append_chunk(std::vector<uint8_t> &out, const char *type, const std::vector<uint8_t> &body) {
    std::vector<uint8_t> bytes;
    append_big_endian(bytes, body.size());
    bytes.insert(bytes.end(), type, type + 4);
    bytes.insert(bytes.end(), body.begin(), body.end());
    append_big_endian(bytes, crc32(0, bytes.data() + 4, uInt(bytes.size() - 4)));
    out.insert(out.end(), bytes.begin(), bytes.end());
}

// A PNG without row filters is a header and what zlib makes of the rows: no library needed beyond that.
void save_png(const std::string &path, const Picture &picture) {
    std::vector<uint8_t> rows;
    for (size_t y = 0; y < picture.height; y++) {
        const uint8_t *row = picture.pixels.data() + y * picture.width * 3;
        rows.push_back(0);  // filter: none
        rows.insert(rows.end(), row, row + picture.width * 3);
    }
    std::vector<uint8_t> packed(compressBound(rows.size()));
    uLongf size = packed.size();
    if (compress(packed.data(), &size, rows.data(), rows.size()) != Z_OK) {
        fail(path, "out of memory");
    }
    packed.resize(size);

    std::vector<uint8_t> header;
    append_big_endian(header, picture.width);
    append_big_endian(header, picture.height);
    header.insert(header.end(), {8, 2, 0, 0, 0});  // 8 bits, RGB, deflate, no interlacing
    std::vector<uint8_t> file = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    append_chunk(file, "IHDR", header);
    append_chunk(file, "IDAT", packed);
    append_chunk(file, "IEND", {});
    write_file(path, file);
}

// One tensor of a batch as a picture: three channels as RGB, otherwise the first as gray.
void draw(const Array &tensor, int64_t n, double low, double high, size_t left, size_t top,
          int64_t scale, Picture &picture) {
    const int64_t c = tensor.shape[1], h = tensor.shape[2], w = tensor.shape[3];
    for (int64_t y = 0; y < h / scale; y++) {
        for (int64_t x = 0; x < w / scale; x++) {
            for (int64_t channel = 0; channel < 3; channel++) {
                const int64_t from = c == 3 ? channel : 0;
                const double value =
                    tensor.values[size_t(((n * c + from) * h + y * scale) * w + x * scale)];
                const double shade = (value - low) / (high - low) * 255;
                // Not a number stays black.
                picture.at(left + size_t(x), top + size_t(y))[channel] =
                    shade > 0 ? uint8_t(std::lround(std::min(255.0, shade))) : 0;
            }
        }
    }
}

}  // namespace

Array load_npy(const std::string &path) {
    return naming(path, [&] {
        const Source source(path);
        return read(source, formats::read_npy(source));
    });
}

void save_npy(const std::string &path, const Array &array, hbn::DType dtype) {
    const auto writer = std::make_shared<MemoryWriter>();
    mx::save(writer, from_array(array, dtype == hbn::DType::float64 ? mx::float64 : mx::float32));
    write_file(path, writer->bytes);
}

std::vector<char> to_bytes(const Array &array, hbn::DType dtype) {
    const mx::array converted = from_array(array, dtype_of(dtype));
    const char *bytes = converted.data<char>();
    return {bytes, bytes + converted.nbytes()};
}

Array from_bytes(const std::vector<char> &bytes, const std::vector<int64_t> &shape,
                 hbn::DType dtype) {
    const mx::Shape mx_shape(shape.begin(), shape.end());
    switch (dtype) {
    case hbn::DType::float64:
        return to_array(from_bytes(bytes, mx_shape, Element::float64));
    case hbn::DType::bfloat16:
        return to_array(from_bytes(bytes, mx_shape, Element::bfloat16));
    case hbn::DType::float16:
        return to_array(from_bytes(bytes, mx_shape, Element::float16));
    default:
        return to_array(from_bytes(bytes, mx_shape, Element::float32));
    }
}

Weights load_weights(const std::string &path, const std::set<std::string> &wanted) {
    return naming(path, [&] {
        Weights weights;
        const Source source(path);
        const auto load = [&](const auto &entries, auto read_entry) {
            for (const auto &entry : entries) {
                const std::string &name = entry.first;
                if (wanted.count(name)) {
                    weights.arrays[name] =
                        naming(quoted(name), [&] { return read_entry(name, entry.second); });
                } else {
                    weights.others.push_back(name);
                }
            }
        };
        if (ends_with(path, ".npz")) {
            load(formats::read_npz(source), [&](const std::string &name, const auto &member) {
                const Source npy(formats::unpack(source, name, member));
                return read_weight(npy, formats::read_npy(npy));
            });
        } else if (ends_with(path, ".safetensors")) {
            load(formats::read_safetensors(source), [&](const std::string &, const auto &entry) {
                return read_weight(source, entry);
            });
        } else {
            throw std::runtime_error("weights are .safetensors or .npz files");
        }
        return weights;
    });
}

void save_comparison(const std::string &path, const Array &before, const Array &after) {
    constexpr int64_t kMostThumbnails = 10, kLargest = 120;
    constexpr size_t kGap = 6;
    const int64_t h = before.shape[2], w = before.shape[3];
    const int64_t scale = std::max<int64_t>(1, (std::min(h, w) + kLargest - 1) / kLargest);
    const size_t thumb_w = size_t(w / scale), thumb_h = size_t(h / scale);
    const int64_t count = std::min(before.shape[0], kMostThumbnails);
    Picture picture(kGap + size_t(count) * (thumb_w + kGap), 2 * thumb_h + 3 * kGap);
    size_t top = kGap;
    for (const Array *tensor : {&before, &after}) {
        // The middle 98 % of the finite values: one outlier should not darken the picture.
        std::vector<double> sorted;
        std::copy_if(tensor->values.begin(), tensor->values.end(), std::back_inserter(sorted),
                     [](double v) { return std::isfinite(v); });
        double low = 0, high = 1;
        if (!sorted.empty()) {
            const auto low_at = sorted.begin() + std::ptrdiff_t(sorted.size() / 100);
            const auto high_at = sorted.end() - 1 - std::ptrdiff_t(sorted.size() / 100);
            std::nth_element(sorted.begin(), low_at, sorted.end());
            low = *low_at;
            std::nth_element(sorted.begin(), high_at, sorted.end());
            high = std::max(low + 1e-30, *high_at);
        }
        for (int64_t i = 0; i < count; i++) {
            draw(*tensor, i * before.shape[0] / count, low, high,
                 kGap + size_t(i) * (thumb_w + kGap), top, scale, picture);
        }
        top += thumb_h + kGap;
    }
    save_png(path, picture);
}
