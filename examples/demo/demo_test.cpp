// The demonstration and its files: headers that lie, files that are damaged at random, disks that are full.
#include "files.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <new>
#include <random>

// The largest piece of memory that was asked for: a header's promise must not make it large.
static thread_local size_t largest_request = 0;

// Not inlined, or else g++ takes malloc and free for mismatched.
__attribute__((noinline)) void *operator new(size_t size) {
    largest_request = std::max(largest_request, size);
    if (void *const memory = std::malloc(size ? size : 1)) {
        return memory;
    }
    throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void *memory) noexcept {
    std::free(memory);
}
__attribute__((noinline)) void operator delete(void *memory, size_t) noexcept {
    std::free(memory);
}

namespace {

// Removed at the end.
struct Folder {
    const std::string path =
        std::filesystem::temp_directory_path() / ("hbn_demo_test_" + std::to_string(getpid()));

    Folder() {
        std::filesystem::create_directories(path);
    }
    ~Folder() {
        std::filesystem::remove_all(path);
    }
};
const Folder own_folder;
const std::string &folder = own_folder.path;

std::string write(const std::string &name, const std::string &bytes) {
    const std::string path = folder + "/" + name;
    std::filesystem::remove(
        path);  // some file systems wait for the disk where a file is written anew
    std::ofstream(path, std::ios::binary) << bytes;
    return path;
}

// ---- files, byte by byte

std::string little_endian(uint64_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; i++) {
        text += i < 8 ? char(value >> 8 * i) : char(0);
    }
    return text;
}

template<typename T>
std::string bytes_of(std::initializer_list<T> values) {
    return {reinterpret_cast<const char *>(values.begin()), values.size() * sizeof(T)};
}

std::string npy(const std::string &header, const std::string &data, int version = 1) {
    return "\x93NUMPY" + little_endian(uint64_t(version), 2) +
           little_endian(header.size(), version == 1 ? 2 : 4) + header + data;
}

std::string npy_of(const std::string &dtype, const std::string &shape, const std::string &data,
                   const std::string &fortran = "False") {
    return npy("{'descr': '" + dtype + "', 'fortran_order': " + fortran + ", 'shape': " + shape +
                   ", }      \n",
               data);
}

std::string safetensors(const std::string &header, const std::string &data) {
    return little_endian(header.size(), 8) + header + data;
}

std::string entry(const std::string &name, const std::string &dtype, const std::string &shape,
                  uint64_t begin, uint64_t end) {
    return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
           ",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

std::string deflated(const std::string &bytes) {
    z_stream stream = {};
    deflateInit2(&stream, 9, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY);
    std::string out(bytes.size() + 1000, '\0');
    stream.next_in = reinterpret_cast<Bytef *>(const_cast<char *>(bytes.data()));
    stream.avail_in = uInt(bytes.size());
    stream.next_out = reinterpret_cast<Bytef *>(out.data());
    stream.avail_out = uInt(out.size());
    EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
    out.resize(stream.total_out);
    deflateEnd(&stream);
    return out;
}

struct ZipMember {
    std::string name, bytes;
    bool compressed = false;
    uint64_t promised = ~uint64_t(0);  // a size that lies
};

std::string zip(const std::vector<ZipMember> &members) {
    std::string file, directory;
    for (const ZipMember &m : members) {
        const std::string packed = m.compressed ? deflated(m.bytes) : m.bytes;
        const uLong crc =
            crc32_z(0, reinterpret_cast<const Bytef *>(m.bytes.data()), m.bytes.size());
        const uint64_t size = m.promised == ~uint64_t(0) ? m.bytes.size() : m.promised;
        const std::string shared = little_endian(0, 2) + little_endian(m.compressed ? 8 : 0, 2) +
                                   little_endian(0, 4) + little_endian(crc, 4) +
                                   little_endian(packed.size(), 4) + little_endian(size, 4) +
                                   little_endian(m.name.size(), 2) + little_endian(0, 2);
        directory += "PK\1\2" + little_endian(20, 2) + little_endian(20, 2) + shared +
                     little_endian(0, 10) + little_endian(file.size(), 4) + m.name;
        file += "PK\3\4" + little_endian(20, 2) + shared + m.name + packed;
    }
    return file + directory + "PK\5\6" + little_endian(0, 4) + little_endian(members.size(), 2) +
           little_endian(members.size(), 2) + little_endian(directory.size(), 4) +
           little_endian(file.size(), 4) + little_endian(0, 2);
}

const std::set<std::string> wanted = {"weight", "bias"};
const std::string two_floats = bytes_of<float>({1.5f, -2});

// What reading a file of these bytes, named with this ending, gives; or the message of its error.
struct Outcome {
    std::vector<Array> arrays;
    std::vector<std::string> others;
    std::string error;
};

Outcome outcome(const std::string &bytes, const std::string &ending) {
    const std::string path = write("file" + ending, bytes);
    Outcome result;
    largest_request = 0;
    try {
        if (ending == ".npy") {
            result.arrays.push_back(load_npy(path));
        } else {
            const Weights weights = load_weights(path, wanted);
            for (const auto &[name, array] : weights.arrays) {
                result.arrays.push_back(array);
            }
            result.others = weights.others;
        }
    } catch (const std::runtime_error &e) {
        result.error = e.what();
        EXPECT_EQ(result.error.rfind(path + ": ", 0), 0u) << result.error;
        EXPECT_EQ(result.error.find('\n'), std::string::npos) << result.error;
    }
    // From one byte deflate makes 1032, and a byte becomes a double.
    EXPECT_LE(largest_request, 100'000 + bytes.size() * (ending == ".npz" ? 1032 * 8 : 8));
    return result;
}

std::string error(const std::string &bytes, const std::string &ending) {
    return outcome(bytes, ending).error;
}

#define EXPECT_ERROR(bytes, ending, part) \
    EXPECT_NE(error(bytes, ending).find(part), std::string::npos) << error(bytes, ending)

Array only_array(const std::string &bytes, const std::string &ending) {
    const Outcome o = outcome(bytes, ending);
    EXPECT_EQ(o.error, "");
    EXPECT_EQ(o.arrays.size(), 1u);
    return o.arrays.empty() ? Array{} : o.arrays[0];
}

void expect_array(const Array &array, const std::vector<int64_t> &shape,
                  const std::vector<double> &values) {
    EXPECT_EQ(array.shape, shape);
    EXPECT_EQ(array.values, values);
}

// ---- .npy

TEST(Npy, EveryDType) {
    const auto read = [](const std::string &dtype, const std::string &data) {
        return only_array(npy_of(dtype, "(2,)", data), ".npy");
    };
    expect_array(read("|b1", std::string("\0\2", 2)), {2}, {0, 1});
    expect_array(read("|i1", bytes_of<int8_t>({-1, 7})), {2}, {-1, 7});
    expect_array(read("<i2", bytes_of<int16_t>({-300, 7})), {2}, {-300, 7});
    expect_array(read("<i4", bytes_of<int32_t>({-70000, 7})), {2}, {-70000, 7});
    expect_array(read("<i8", bytes_of<int64_t>({-(int64_t(1) << 40), 7})), {2}, {-0x1p40, 7});
    expect_array(read("|u1", bytes_of<uint8_t>({255, 7})), {2}, {255, 7});
    expect_array(read("<u2", bytes_of<uint16_t>({65535, 7})), {2}, {65535, 7});
    expect_array(read("<u4", bytes_of<uint32_t>({4000000000u, 7})), {2}, {4e9, 7});
    expect_array(read("<u8", bytes_of<uint64_t>({uint64_t(1) << 60, 7})), {2}, {0x1p60, 7});
    expect_array(read("<f2", bytes_of<uint16_t>({0x3e00, 0xc000})), {2}, {1.5, -2});
    expect_array(read("<V2", bytes_of<uint16_t>({0x3fc0, 0xc000})), {2}, {1.5, -2});
    expect_array(read("<f4", two_floats), {2}, {1.5, -2});
    expect_array(read("<f8", bytes_of<double>({0.1, -2})), {2}, {0.1, -2});
    expect_array(read(">f4", std::string("\x3f\xc0\0\0\xc0\0\0\0", 8)), {2}, {1.5, -2});
}

TEST(Npy, OrdersShapesAndVersions) {
    const std::string six = bytes_of<uint8_t>({0, 1, 2, 3, 4, 5});
    expect_array(only_array(npy_of("|u1", "(2, 3)", six), ".npy"), {2, 3}, {0, 1, 2, 3, 4, 5});
    expect_array(only_array(npy_of("|u1", "(2, 3)", six, "True"), ".npy"), {2, 3},
                 {0, 2, 4, 1, 3, 5});
    expect_array(only_array(npy_of("|u1", "()", "\3"), ".npy"), {}, {3});
    expect_array(only_array(npy_of("<f4", "(2000000000, 0, 3)", ""), ".npy"), {2000000000, 0, 3},
                 {});
    const std::string header = "{\"shape\": (2,), 'fortran_order': False, 'descr': 'u1'}";
    for (int version = 1; version <= 3; version++) {
        expect_array(only_array(npy(header, "\1\2", version), ".npy"), {2}, {1, 2});
    }
}

TEST(Npy, HeadersThatLie) {
    EXPECT_ERROR("", ".npy", "is not a .npy file");
    EXPECT_ERROR("neither this nor that", ".npy", "is not a .npy file");
    EXPECT_ERROR(npy("{}", "", 4), ".npy", "version 4");
    EXPECT_ERROR(npy("{}", ""), ".npy", "damaged header");
    EXPECT_ERROR("\x93NUMPY" + little_endian(2, 2) + little_endian(0xffffffff, 4), ".npy",
                 "is cut off");
    EXPECT_ERROR(npy_of("<f4", "(3,)", two_floats), ".npy", "promises 12 bytes of data, it has 8");
    EXPECT_ERROR(npy_of("<f4", "(1,)", two_floats), ".npy", "promises 4 bytes of data, it has 8");
    EXPECT_ERROR(npy_of("<f8", "(2000000000, 100)", two_floats), ".npy", "promises 1600000000000");
    EXPECT_ERROR(npy_of("<f4", "(-2,)", two_floats), ".npy", "no whole number");
    EXPECT_ERROR(npy_of("<f4", "(2.0,)", two_floats), ".npy", "no whole number");
    EXPECT_ERROR(npy_of("<f4", "(4294967298,)", two_floats), ".npy", "4294967298");
    EXPECT_ERROR(npy_of("<f4", "(99999999999999999999999,)", two_floats), ".npy", "64 bits");
    // 4 * 65536^4 is 0 in 64 bits.
    EXPECT_ERROR(npy_of("<f4", "(65536, 65536, 65536, 65536)", ""), ".npy", "64 bits");
    EXPECT_ERROR(npy_of("<f4", "2", two_floats), ".npy", "damaged header");
    EXPECT_ERROR(npy_of("<f4", "(2,)", two_floats, "Maybe"), ".npy", "fortran_order");
}

TEST(Npy, DTypesThatAreNoNumbers) {
    for (const char *dtype : {"<c8", "<c16", "|O", "<U5", "<M8[ns]", "<f16", "", "<", "\\n"}) {
        EXPECT_ERROR(npy_of(dtype, "(2,)", two_floats), ".npy", "has dtype");
    }
    EXPECT_ERROR(
        npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}", two_floats), ".npy",
        "several fields");
}

TEST(Npy, WrittenAndReadAgain) {
    const Array array{{2, 1, 3}, {0, 1, 2, 3, 4, INFINITY}};
    const std::string path = folder + "/no_ending";
    for (const hbn::DType dtype : {hbn::DType::float32, hbn::DType::float64, hbn::DType::float16}) {
        save_npy(path, array, dtype);
        const Array read = load_npy(path);
        expect_array(read, array.shape, array.values);
    }
}

TEST(Npy, NotAFile) {
    EXPECT_THROW(load_npy(folder), std::runtime_error);
    EXPECT_THROW(load_npy(folder + "/none"), std::runtime_error);
    EXPECT_THROW(load_npy("/dev/zero"), std::runtime_error);
}

// ---- .safetensors

TEST(SafeTensors, OnlyWhatIsWantedIsRead) {
    const std::string file = safetensors(
        "{\"__metadata__\":{\"format\":\"pt\"}," + entry("weight", "F32", "[2]", 0, 8) + "," +
            entry("packed", "F8_E5M2", "[3]", 8, 11) + "," + entry("ids", "I8", "[1]", 11, 12) +
            "," + entry("bi\\u0061s", "F64", "[1]", 12, 20) + "," +
            entry("empty", "F32", "[0]", 8, 8) + "}  ",
        two_floats + "1234" + bytes_of<double>({0.1}));
    const Outcome o = outcome(file, ".safetensors");
    ASSERT_EQ(o.error, "");
    ASSERT_EQ(o.arrays.size(), 2u);
    expect_array(o.arrays[0], {1}, {0.1});
    expect_array(o.arrays[1], {2}, {1.5, -2});
    EXPECT_EQ(o.others, (std::vector<std::string>{"empty", "ids", "packed"}));
}

TEST(SafeTensors, WhatIsNoFloatIsRefusedByName) {
    for (const char *dtype : {"I8", "U8", "BOOL", "F8_E4M3", "F4", "C64", "", "float"}) {
        const std::string file = safetensors("{" + entry("weight", dtype, "[1]", 0, 1) + "}", "x");
        EXPECT_ERROR(file, ".safetensors", "\"weight\": ");
    }
}

TEST(SafeTensors, HeadersThatLie) {
    const auto with = [](const std::string &entries) {
        return safetensors("{" + entries + "}", two_floats);
    };
    const auto weight = [&](const std::string &shape, uint64_t begin, uint64_t end) {
        return with(entry("weight", "F32", shape, begin, end));
    };
    EXPECT_EQ(error(weight("[2]", 0, 8), ".safetensors"), "");
    EXPECT_ERROR("", ".safetensors", "is not a .safetensors file");
    EXPECT_ERROR(little_endian(~uint64_t(0), 8), ".safetensors", "18446744073709551615 bytes");
    EXPECT_ERROR(little_endian(99'999'999, 8) + "{}", ".safetensors", "99999999 bytes");
    EXPECT_ERROR(weight("[3]", 0, 8), ".safetensors", "\"weight\": its shape takes 12 bytes");
    EXPECT_ERROR(weight("[3]", 0, 12), ".safetensors", "\"weight\": its data_offsets");
    EXPECT_ERROR(weight("[2]", 8, 0), ".safetensors", "\"weight\": its data_offsets");
    EXPECT_ERROR(weight("[2]", ~uint64_t(0) - 7, 0), ".safetensors", "data_offsets");
    EXPECT_ERROR(weight("[-2]", 0, 8), ".safetensors", "\"weight\": a size that is no whole");
    EXPECT_ERROR(weight("[2e0]", 0, 8), ".safetensors", "\"weight\": a size that is no whole");
    EXPECT_ERROR(weight("[65536,65536,65536,65536]", 0, 0), ".safetensors", "64 bits");
    EXPECT_ERROR(weight("[4294967298]", 0, 8), ".safetensors", "4294967298");
    EXPECT_ERROR(weight("\"2\"", 0, 8), ".safetensors", "\"weight\": damaged header");
    EXPECT_ERROR(weight("[1]", 0, 4), ".safetensors", "4 bytes at its end");
    EXPECT_ERROR(weight("[1]", 4, 8), ".safetensors", "\"weight\": its data begin at 4");
    EXPECT_ERROR(
        with(entry("weight", "F32", "[2]", 0, 8) + "," + entry("bias", "F32", "[1]", 4, 8)),
        ".safetensors", "\"bias\": its data begin at 4, those before it end at 8");
    EXPECT_ERROR(
        with(entry("weight", "F32", "[1]", 0, 4) + "," + entry("weight", "F32", "[1]", 4, 8)),
        ".safetensors", "\"weight\": it is there twice");
    EXPECT_ERROR(with("\"weight\":{\"dtype\":\"F32\"}"), ".safetensors", "\"weight\": it lacks");
    EXPECT_ERROR(with("\"weight\":3"), ".safetensors", "\"weight\": damaged header");
    EXPECT_ERROR(with("\"__metadata__\":" + std::string(100'000, '[')), ".safetensors",
                 "nested too deeply");
    EXPECT_ERROR(with("\"a\nb\\u000ac"), ".safetensors", "a string without an end");
    EXPECT_ERROR(safetensors("{}x", ""), ".safetensors", "something follows its end");
}

// ---- .npz

TEST(Npz, OnlyWhatIsWantedIsRead) {
    for (const bool compressed : {false, true}) {
        const std::string file =
            zip({{"weight.npy", npy_of("<f4", "(2,)", two_floats), compressed},
                 {"names.npy", npy_of("|O", "(2,)", "a pickle"), compressed},
                 {"damaged.npy", "x", compressed},
                 {"ids.npy", npy_of("<c8", "(1,)", two_floats), compressed},
                 {"bias.npy", npy_of("<f2", "(1,)", bytes_of<uint16_t>({0x3e00})), compressed},
                 {"read.me", "text", compressed}});
        const Outcome o = outcome(file, ".npz");
        ASSERT_EQ(o.error, "");
        ASSERT_EQ(o.arrays.size(), 2u);
        expect_array(o.arrays[0], {1}, {1.5});
        expect_array(o.arrays[1], {2}, {1.5, -2});
        EXPECT_EQ(o.others, (std::vector<std::string>{"damaged", "ids", "names"}));
    }
}

TEST(Npz, MembersThatLie) {
    const std::string good = npy_of("<f4", "(2,)", two_floats);
    const auto file = [](const std::string &bytes, bool compressed, uint64_t promised) {
        return zip({{"weight.npy", bytes, compressed, promised}});
    };
    EXPECT_ERROR("", ".npz", "is not a .npz file");
    EXPECT_ERROR("PK\5\6", ".npz", "is not a .npz file");
    EXPECT_ERROR(file(good, false, 1 << 30), ".npz", "\"weight\": the directory promises");
    EXPECT_ERROR(file(good, true, 1 << 30), ".npz", "\"weight\": the directory promises");
    EXPECT_ERROR(file(good, true, good.size() + 1), ".npz", "\"weight\": damaged data");
    EXPECT_ERROR(file(good, true, good.size() - 1), ".npz", "\"weight\": damaged data");
    EXPECT_ERROR(file(good, true, 0xffffffff), ".npz", "\"weight\": has 4 GiB");
    EXPECT_ERROR(file("", true, 0), ".npz", "\"weight\": is not a .npy file");
    EXPECT_ERROR(file(npy_of("<i4", "(2,)", two_floats), true, ~uint64_t(0)), ".npz",
                 "\"weight\": has dtype \"<i4\", weights are floats");
    EXPECT_ERROR(file(npy_of("|O", "(2,)", two_floats), false, ~uint64_t(0)), ".npz",
                 "\"weight\": has dtype \"|O\"");
    EXPECT_ERROR(zip({{"weight.npy", good}, {"weight.npy", good}}), ".npz",
                 "\"weight\": it is there twice");
    std::string changed = zip({{"weight.npy", good}});
    changed[changed.find(two_floats)] ^= 1;
    EXPECT_ERROR(changed, ".npz", "\"weight\": damaged data: the checksum differs");
}

TEST(Weights, OtherFormats) {
    EXPECT_ERROR("", ".pth", ".safetensors or .npz");
}

// ---- any damage

// Reads thousands of damaged files, the same ones each time: an array or one line of error comes of each, without much
// memory; a sanitized build sees the rest. HBN_DEMO_FUZZ_SECONDS makes it go on with others.
void damage(const std::string &file, const std::string &ending) {
    const char *const text = std::getenv("HBN_DEMO_FUZZ_SECONDS");
    const auto end = std::chrono::steady_clock::now() +
                     std::chrono::milliseconds(text ? int64_t(std::atof(text) * 1000) : 0);
    constexpr int kAtLeast = 3000;
    std::mt19937_64 random(20240229);
    const auto below = [&](size_t limit) { return size_t(random() % limit); };
    const std::vector<std::string> tokens = {"0",
                                             "-1",
                                             "2147483648",
                                             "18446744073709551615",
                                             "4294967297",
                                             "[",
                                             "{",
                                             "(",
                                             "\"",
                                             "'",
                                             "\\u0000",
                                             ",",
                                             "F64",
                                             "I8",
                                             "<f8",
                                             "True",
                                             little_endian(~uint64_t(0), 8),
                                             little_endian(0, 8),
                                             little_endian(0x7fffffff, 4)};
    int errors = 0, readable = 0;
    for (int i = 0; i < kAtLeast || std::chrono::steady_clock::now() < end; i++) {
        std::string damaged = file;
        for (size_t changes = 1 + below(3); changes > 0 && !damaged.empty(); changes--) {
            const size_t at = below(damaged.size());
            switch (below(6)) {
            case 0:
                damaged[at] = char(random());
                break;
            case 1:
                damaged[at] = char(damaged[at] ^ 1 << below(8));
                break;
            case 2:
                damaged.resize(at);
                break;
            case 3:
                damaged.erase(at, 1 + below(8));
                break;
            case 4:
                damaged.insert(at, tokens[below(tokens.size())]);
                break;
            case 5: {
                const std::string &token = tokens[below(tokens.size())];
                damaged.replace(at, token.size(), token);
                break;
            }
            }
        }
        const Outcome o = outcome(damaged, ending);
        ++(o.error.empty() ? readable : errors);
        for (const Array &array : o.arrays) {
            size_t size = 1;
            for (const int64_t s : array.shape) {
                size *= size_t(s);
            }
            ASSERT_EQ(array.values.size(), size);
        }
        if (testing::Test::HasFailure()) {
            std::ofstream("damaged" + ending, std::ios::binary) << damaged;
            FAIL() << "file " << i << ", left as damaged" << ending << " in this folder";
        }
    }
    // Both happen, or else the damage is not of the kind that is wanted.
    EXPECT_GT(errors, 100);
    EXPECT_GT(readable, 10);
}

TEST(Damage, Npy) {
    damage(npy_of("<f4", "(1, 2, 1, 1)", two_floats), ".npy");
    damage(npy_of(">i2", "(2, 2)", two_floats, "True"), ".npy");
}

TEST(Damage, SafeTensors) {
    damage(
        safetensors("{\"__metadata__\":{\"format\":\"pt\"}," + entry("bias", "BF16", "[2]", 8, 12) +
                        "," + entry("weight", "F32", "[2]", 0, 8) + "}",
                    two_floats + "1234"),
        ".safetensors");
}

TEST(Damage, Npz) {
    const std::string good = npy_of("<f4", "(2,)", two_floats);
    damage(zip({{"weight.npy", good}, {"other.npy", good}}), ".npz");
    damage(zip({{"weight.npy", good, true}, {"bias.npy", good, true}}), ".npz");
}

// ---- the program

struct Finished {
    int status;
    std::string output;
};

Finished demo(const std::string &arguments) {
    const std::string command = std::string(HBN_DEMO) + " 2>&1 --threads 1 " + arguments;
    std::FILE *const pipe = popen(command.c_str(), "r");
    std::string output;
    char buffer[4096];
    for (size_t size; (size = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) {
        output.append(buffer, size);
    }
    const int status = pclose(pipe);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
}

void expect_failure(const Finished &run, const std::string &part) {
    EXPECT_EQ(run.status, 1) << run.output;
    EXPECT_NE(run.output.find("demo: "), std::string::npos) << run.output;
    EXPECT_NE(run.output.find(part), std::string::npos) << run.output;
}

const std::string picture = " --picture " + folder + "/picture.png ";

std::string input(std::initializer_list<float> values = {1, 2, 3, 4, 5, 6, 7, 8}) {
    return "--input " + write("x.npy", npy_of("<f4", "(2, 2, 1, 2)", bytes_of(values))) + " ";
}

TEST(Demo, WritesWhatItSays) {
    const std::string path = folder + "/y.npy";
    const Finished run = demo(input() + picture + "--output " + path);
    EXPECT_EQ(run.status, 0) << run.output;
    EXPECT_EQ(run.output.find("not all results are finite"), std::string::npos) << run.output;
    EXPECT_EQ(load_npy(path).shape, (std::vector<int64_t>{2, 2, 1, 2}));
    EXPECT_GT(std::filesystem::file_size(folder + "/picture.png"), 60u);
}

TEST(Demo, FilesThatCannotBeWritten) {
    expect_failure(demo(input() + picture + "--output /dev/full"),
                   "/dev/full: cannot be written: No space left on device");
    expect_failure(demo(input() + "--picture /dev/full"),
                   "/dev/full: cannot be written: No space left on device");
    expect_failure(demo(input() + picture + "--output " + folder + "/none/y.npy"),
                   "/none/y.npy: cannot be written: No such file or directory");
    EXPECT_FALSE(std::filesystem::exists("/dev/full.npy"));
    expect_failure(demo(input() + picture + ">/dev/full"), "standard output: No space left");
}

TEST(Demo, SaysWhatIsNotFinite) {
    const Finished nan = demo(input({1, 2, 3, 4, 5, 6, NAN, 8}) + picture);
    EXPECT_EQ(nan.status, 0) << nan.output;
    for (const std::string part :
         {"not all results are finite", "forward, training     4 NaN and 0 infinite of 8 values",
          "because of ", "x.npy: 1 NaN and 0 infinite of 8 values, first at [1, 1, 0, 0]"}) {
        EXPECT_NE(nan.output.find(part), std::string::npos) << part << "\n" << nan.output;
    }
    const std::string four = bytes_of<float>({1, 1, 1, -3});
    const std::string weights =
        write("w.safetensors", safetensors("{" + entry("weight", "F32", "[2]", 0, 8) + "," +
                                               entry("bias", "F32", "[2]", 8, 16) + "," +
                                               entry("running_mean", "F32", "[2]", 16, 24) + "," +
                                               entry("running_var", "F32", "[2]", 24, 32) + "}",
                                           four + four));
    const Finished variance = demo(input() + picture + "--weights " + weights);
    EXPECT_EQ(variance.status, 0) << variance.output;
    EXPECT_NE(variance.output.find("because of " + weights + ": running_var[1] is -3"),
              std::string::npos)
        << variance.output;
}

TEST(Demo, InputsThatDoNotFit) {
    const std::string flat =
        "--input " + write("flat.npy", npy_of("<f4", "(2,)", two_floats)) + picture;
    expect_failure(demo(flat), "flat.npy: expected a (N, C, H, W) array");
    const std::string three =
        write("three.npz", zip({{"weight.npy", npy_of("<f4", "(1,)", "1234")},
                                {"bias.npy", npy_of("<f4", "(2,)", two_floats)},
                                {"more.npy", "x"}}));
    expect_failure(demo(input() + picture + "--weights " + three),
                   "three.npz: has no \"running_mean\"; it has more");
}

TEST(Demo, DTypesThatWereLeftOut) {
    const std::string built = "|" HBN_DEMO_DTYPES "|";
    for (const std::string dtype : {"float32", "float64", "bfloat16", "float16"}) {
        for (const std::string layout : {"", " --channels-last"}) {
            const Finished run = demo(input() + picture + "--dtype " + dtype + layout);
            if (built.find("|" + dtype + "|") != std::string::npos) {
                EXPECT_EQ(run.status, 0) << run.output;
            } else {
                expect_failure(run, "make demo ARGS='--dtype " + dtype + "'");
            }
        }
    }
}

}  // namespace

int main(int argc, char **argv) {
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
