#include "files.h"

#include <mlx/mlx.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>

namespace mx = mlx::core;

namespace {

[[noreturn]] void fail(const std::string &path, const std::string &what) {
    throw std::runtime_error(path + ": " + what);
}

Array to_array(const mx::array &source) {
    if (source.dtype() == mx::complex64) {
        throw std::runtime_error("complex numbers");
    }
    mx::array dense = mx::contiguous(mx::astype(source, mx::float64));
    dense.eval();
    Array result;
    result.shape.assign(dense.shape().begin(), dense.shape().end());
    result.values.assign(dense.data<double>(), dense.data<double>() + dense.size());
    return result;
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

// Lets MLX read a .npy that lies in memory.
class MemoryReader : public mx::io::Reader {
public:
    MemoryReader(std::vector<char> bytes, std::string label)
        : bytes_(std::move(bytes)), label_(std::move(label)) {
    }
    bool is_open() const override {
        return true;
    }
    bool good() const override {
        return good_;
    }
    size_t tell() override {
        return position_;
    }
    void seek(int64_t offset, std::ios_base::seekdir from) override {
        position_ = size_t(offset + (from == std::ios_base::beg   ? 0
                                     : from == std::ios_base::cur ? int64_t(position_)
                                                                  : int64_t(bytes_.size())));
    }
    void read(char *data, size_t size) override {
        read(data, size, position_);
        position_ += size;
    }
    void read(char *data, size_t size, size_t offset) override {
        if (offset > bytes_.size() || size > bytes_.size() - offset) {
            good_ = false;
            throw std::runtime_error("truncated array");
        }
        std::memcpy(data, bytes_.data() + offset, size);
    }
    std::string label() const override {
        return label_;
    }

private:
    std::vector<char> bytes_;
    std::string label_;
    size_t position_ = 0;
    bool good_ = true;
};

// A .npz is a zip of .npy files. No library on PyPI reads zip from C++, and what NumPy writes of the format is
// small: a directory at the end, entries stored or deflated.
class Npz {
public:
    explicit Npz(const std::string &path) : path_(path) {
        std::ifstream file(path, std::ios::binary);
        bytes_.assign(std::istreambuf_iterator<char>(file), {});
        constexpr size_t kEndSize = 22;
        size_t end = bytes_.size() < kEndSize ? 0 : bytes_.size() - kEndSize + 1;
        while (end > 0 && number(end - 1, 4) != 0x06054b50) {
            end--;
        }
        if (end == 0) {
            fail(path_, "not a .npz file");
        }
        const size_t entries = number(end - 1 + 10, 2);
        size_t at = number(end - 1 + 16, 4);
        for (size_t i = 0; i < entries; i++) {
            if (number(at, 4) != 0x02014b50) {
                fail(path_, "damaged directory");
            }
            const size_t name_size = number(at + 28, 2);
            const std::string name = text(at + 46, name_size);
            entries_[name] = {number(at + 10, 2), number(at + 20, 4), number(at + 24, 4),
                              number(at + 42, 4)};
            at += 46 + name_size + number(at + 30, 2) + number(at + 32, 2);
        }
    }

    std::map<std::string, Array> arrays() const {
        std::map<std::string, Array> all;
        for (const auto &[name, entry] : entries_) {
            if (name.size() > 4 && name.substr(name.size() - 4) == ".npy") {
                const auto reader = std::make_shared<MemoryReader>(contents(entry), name);
                all[name.substr(0, name.size() - 4)] = to_array(mx::load(reader));
            }
        }
        return all;
    }

private:
    struct Entry {
        size_t method, packed_size, size, header;
    };

    size_t number(size_t at, int count) const {
        if (at + size_t(count) > bytes_.size()) {
            fail(path_, "truncated");
        }
        size_t value = 0;
        for (int i = count - 1; i >= 0; i--) {
            value = value << 8 | uint8_t(bytes_[at + size_t(i)]);
        }
        return value;
    }

    std::string text(size_t at, size_t size) const {
        if (size > bytes_.size() || at > bytes_.size() - size) {
            fail(path_, "truncated");
        }
        return std::string(bytes_.data() + at, size);
    }

    std::vector<char> contents(const Entry &entry) const {
        const size_t begin =
            entry.header + 30 + number(entry.header + 26, 2) + number(entry.header + 28, 2);
        if (entry.packed_size > bytes_.size() || begin > bytes_.size() - entry.packed_size) {
            fail(path_, "truncated");
        }
        if (entry.method == 0) {
            return {bytes_.begin() + long(begin), bytes_.begin() + long(begin + entry.packed_size)};
        }
        if (entry.method != 8) {
            fail(path_, "compressed with an unknown method");
        }
        std::vector<char> out(entry.size);
        z_stream stream = {};
        stream.next_in = reinterpret_cast<Bytef *>(const_cast<char *>(bytes_.data() + begin));
        stream.avail_in = uInt(entry.packed_size);
        stream.next_out = reinterpret_cast<Bytef *>(out.data());
        stream.avail_out = uInt(entry.size);
        int status = inflateInit2(&stream, -15);  // bare deflate, without zlib's own header
        if (status == Z_OK) {
            status = inflate(&stream, Z_FINISH);
            inflateEnd(&stream);
        }
        if (status != Z_STREAM_END || stream.avail_out != 0) {
            fail(path_, "damaged data");
        }
        return out;
    }

    std::string path_;
    std::vector<char> bytes_;
    std::map<std::string, Entry> entries_;
};

bool ends_with(const std::string &text, const std::string &end) {
    return text.size() >= end.size() &&
           text.compare(text.size() - end.size(), end.size(), end) == 0;
}

void require_readable(const std::string &path) {
    if (!std::ifstream(path)) {
        fail(path, "cannot be opened");
    }
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

void write_chunk(std::ostream &out, const char *type, const std::vector<uint8_t> &body) {
    std::vector<uint8_t> bytes;
    append_big_endian(bytes, body.size());
    bytes.insert(bytes.end(), type, type + 4);
    bytes.insert(bytes.end(), body.begin(), body.end());
    append_big_endian(bytes, crc32(0, bytes.data() + 4, uInt(bytes.size() - 4)));
    out.write(reinterpret_cast<const char *>(bytes.data()), std::streamsize(bytes.size()));
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
    std::ofstream out(path, std::ios::binary);
    out.write("\x89PNG\r\n\x1a\n", 8);
    write_chunk(out, "IHDR", header);
    write_chunk(out, "IDAT", packed);
    write_chunk(out, "IEND", {});
    out.close();
    if (!out) {
        fail(path, "cannot be written");
    }
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
    require_readable(path);
    try {
        return to_array(mx::load(path));
    } catch (const std::exception &e) {
        fail(path, std::string("not a readable .npy file: ") + e.what());
    }
}

void save_npy(const std::string &path, const Array &array, hbn::DType dtype) {
    try {
        mx::save(path, from_array(array, dtype == hbn::DType::float64 ? mx::float64 : mx::float32));
    } catch (const std::exception &e) {
        fail(path, std::string("cannot be written: ") + e.what());
    }
}

std::vector<char> to_bytes(const Array &array, hbn::DType dtype) {
    const mx::array converted = from_array(array, dtype_of(dtype));
    const char *bytes = converted.data<char>();
    return {bytes, bytes + converted.nbytes()};
}

Array from_bytes(const std::vector<char> &bytes, const std::vector<int64_t> &shape,
                 hbn::DType dtype) {
    const mx::Shape mx_shape(shape.begin(), shape.end());
    const auto typed = [&](auto zero) {
        return mx::array(reinterpret_cast<const decltype(zero) *>(bytes.data()), mx_shape,
                         dtype_of(dtype));
    };
    switch (dtype) {
    case hbn::DType::float64:
        return to_array(typed(double()));
    case hbn::DType::bfloat16:
        return to_array(typed(mx::bfloat16_t()));
    case hbn::DType::float16:
        return to_array(typed(mx::float16_t()));
    default:
        return to_array(typed(float()));
    }
}

std::map<std::string, Array> load_weights(const std::string &path) {
    require_readable(path);
    try {
        if (ends_with(path, ".npz")) {
            return Npz(path).arrays();
        }
        if (ends_with(path, ".safetensors")) {
            std::map<std::string, Array> all;
            for (const auto &[name, array] : mx::load_safetensors(path).first) {
                all[name] = to_array(array);
            }
            return all;
        }
    } catch (const std::exception &e) {
        const std::string what = e.what();
        fail(path, what.rfind(path, 0) == 0 ? what.substr(path.size() + 2) : what);
    }
    fail(path, "weights are .safetensors or .npz");
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
