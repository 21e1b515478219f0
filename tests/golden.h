// Reads the container that golden/make_golden.py writes and documents.
#ifndef HBN_TESTS_GOLDEN_H
#define HBN_TESTS_GOLDEN_H

#include "tensors.h"

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace hbn::test {

// The host's type of a stored dtype; bfloat16 and float16 come as their bits.
template<typename T>
bool holds(DType dtype);
template<>
inline bool holds<float>(DType dtype) {
    return dtype == DType::float32;
}
template<>
inline bool holds<double>(DType dtype) {
    return dtype == DType::float64;
}
template<>
inline bool holds<uint16_t>(DType dtype) {
    return dtype == DType::bfloat16 || dtype == DType::float16;
}
template<>
inline bool holds<int64_t>(DType dtype) {
    return dtype == DType::int64;
}

class Golden {
public:
    struct Record {
        DType dtype;
        std::vector<int64_t> shape;
        std::vector<uint8_t> bytes;
    };

    // @throws std::runtime_error when the file is absent or not such a container
    explicit Golden(const std::string &path) {
        std::ifstream file(path, std::ios::binary);
        const std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
        if (content.size() < 12 || std::memcmp(content.data(), "HBNGOLD1", 8) != 0) {
            throw std::runtime_error("no golden data in " + path);
        }
        Cursor in{content, 8};
        const uint32_t count = in.read<uint32_t>();
        for (uint32_t i = 0; i < count; i++) {
            const uint16_t length = in.read<uint16_t>();
            const std::string name(in.take(length), length);
            Record &record = records_[name];
            record.dtype = DType(in.read<uint8_t>());
            record.shape.resize(in.read<uint8_t>());
            size_t elements = 1;
            for (int64_t &size : record.shape) {
                size = in.read<int64_t>();
                elements *= size_t(size);
            }
            const size_t bytes = elements * size_of(record.dtype);
            const char *values = in.take(bytes);
            record.bytes.assign(values, values + bytes);
        }
        if (in.position != content.size()) {
            throw std::runtime_error("more than golden data in " + path);
        }
    }

    const std::map<std::string, Record> &records() const {
        return records_;
    }
    bool has(const std::string &name) const {
        return records_.count(name) != 0;
    }
    // @throws std::out_of_range naming what is missing
    const Record &at(const std::string &name) const {
        const auto found = records_.find(name);
        if (found == records_.end()) {
            throw std::out_of_range("no golden record " + name);
        }
        return found->second;
    }

    // The values in their own type. @throws std::invalid_argument when T is not that
    template<typename T>
    std::vector<T> get(const std::string &name) const {
        const Record &record = at(name);
        if (!holds<T>(record.dtype)) {
            throw std::invalid_argument(name + " holds " + name_of(record.dtype));
        }
        std::vector<T> values(record.bytes.size() / sizeof(T));
        if (!values.empty()) {
            std::memcpy(values.data(), record.bytes.data(), record.bytes.size());
        }
        return values;
    }

    // The values of any float dtype, widened.
    std::vector<double> values(const std::string &name) const {
        const DType dtype = at(name).dtype;
        if (dtype == DType::float64) {
            return get<double>(name);
        }
        if (dtype == DType::float32) {
            const std::vector<float> narrow = get<float>(name);
            return std::vector<double>(narrow.begin(), narrow.end());
        }
        std::vector<double> wide;
        for (uint16_t bits : get<uint16_t>(name)) {
            wide.push_back(load(dtype, &bits));
        }
        return wide;
    }

private:
    struct Cursor {
        const std::vector<char> &content;
        size_t position;

        const char *take(size_t size) {
            if (size > content.size() - position) {
                throw std::runtime_error("golden data is cut short");
            }
            position += size;
            return content.data() + position - size;
        }
        template<typename T>
        T read() {
            T value;
            std::memcpy(&value, take(sizeof value), sizeof value);
            return value;
        }
    };

    std::map<std::string, Record> records_;
};

}  // namespace hbn::test

#endif
