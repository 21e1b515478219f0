#include "formats.h"

#include <sys/stat.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace formats {

namespace {

[[noreturn]] void fail(const std::string &what) {
    throw std::runtime_error(what);
}

// MLX's shapes have 32-bit sizes.
constexpr uint64_t kLargestSize = std::numeric_limits<int32_t>::max();
constexpr size_t kMostDimensions = 32;

struct NamedElement {
    const char *npy, *safetensors;
    Element element;
    int size;
};
// ml_dtypes' bfloat16 is V2 in a .npy, since NumPy has none.
constexpr NamedElement kElements[] = {
    {"b1", "BOOL", Element::boolean, 1},  {"i1", "I8", Element::int8, 1},
    {"i2", "I16", Element::int16, 2},     {"i4", "I32", Element::int32, 4},
    {"i8", "I64", Element::int64, 8},     {"u1", "U8", Element::uint8, 1},
    {"u2", "U16", Element::uint16, 2},    {"u4", "U32", Element::uint32, 4},
    {"u8", "U64", Element::uint64, 8},    {"f2", "F16", Element::float16, 2},
    {"V2", "BF16", Element::bfloat16, 2}, {"f4", "F32", Element::float32, 4},
    {"f8", "F64", Element::float64, 8},
};

Element element_named(const char *NamedElement::*format, const std::string &name) {
    for (const NamedElement &e : kElements) {
        if (name == e.*format) {
            return e.element;
        }
    }
    return Element::other;
}

// Text that is taken from its beginning: JSON, and the little of Python's literals that .npy headers have.
class Scanner {
public:
    explicit Scanner(const std::vector<char> &text)
        : at_(text.data()), end_(text.data() + text.size()) {
    }

    void skip_space() {
        while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) {
            at_++;
        }
    }
    bool at_end() {
        skip_space();
        return at_ == end_;
    }
    char peek() {
        skip_space();
        return at_ < end_ ? *at_ : '\0';
    }
    bool take(char c) {
        const bool found = !at_end() && *at_ == c;
        at_ += found;
        return found;
    }
    void expect(char c) {
        if (!take(c)) {
            fail(std::string("damaged header: no '") + c + "' where there should be one");
        }
    }
    bool take_word(const char *word) {
        skip_space();
        const size_t size = std::strlen(word);
        if (size_t(end_ - at_) < size || std::memcmp(at_, word, size) != 0) {
            return false;
        }
        at_ += size;
        return true;
    }

    std::string string() {
        const char quote = peek() == '\'' ? '\'' : '"';
        expect(quote);
        std::string text;
        for (char c; (c = next()) != quote;) {
            if (c != '\\') {
                text += c;
                continue;
            }
            constexpr char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
            const char escape = next();
            if (escape == 'u') {
                append_utf8(text);
                continue;
            }
            const char *const found = escape ? std::strchr(escapes, escape) : nullptr;
            if (!found) {
                fail("damaged header: an unknown escape in a string");
            }
            text += meanings[found - escapes];
        }
        return text;
    }

    // Whole and not negative.
    uint64_t number() {
        uint64_t value = 0;
        bool any = false;
        for (skip_space(); at_ < end_ && *at_ >= '0' && *at_ <= '9'; at_++, any = true) {
            const uint64_t digit = uint64_t(*at_ - '0');
            if (value > (std::numeric_limits<uint64_t>::max() - digit) / 10) {
                fail("a size beyond 64 bits");
            }
            value = value * 10 + digit;
        }
        if (!any || (at_ < end_ && std::strchr(".eE", *at_))) {
            fail("a size that is no whole number from 0 up");
        }
        return value;
    }

    std::vector<uint64_t> numbers(char open, char close) {
        std::vector<uint64_t> all;
        expect(open);
        while (!take(close)) {
            all.push_back(number());
            if (all.size() > kMostDimensions) {
                fail("more than " + std::to_string(kMostDimensions) + " dimensions");
            }
            if (!take(',')) {
                expect(close);
                break;
            }
        }
        return all;
    }

    // Of JSON, whatever it is.
    void skip_value(int depth = 0) {
        constexpr int kDeepest = 64;
        if (depth > kDeepest) {
            fail("damaged header: nested too deeply");
        }
        const char first = peek();
        if (first == '"') {
            string();
        } else if (take('{') || take('[')) {
            const char close = first == '{' ? '}' : ']';
            for (bool more = !take(close); more; more = take(',') || (expect(close), false)) {
                if (first == '{') {
                    string();
                    expect(':');
                }
                skip_value(depth + 1);
            }
        } else {
            const char *const begin = at_;
            while (at_ < end_ && !std::strchr(",]} \n\r\t", *at_)) {
                at_++;
            }
            if (at_ == begin) {
                fail("damaged header: a value is missing");
            }
        }
    }

private:
    char next() {
        if (at_ == end_) {
            fail("damaged header: a string without an end");
        }
        return *at_++;
    }

    void append_utf8(std::string &text) {
        uint32_t code = 0;
        for (int i = 0; i < 4; i++) {
            const char c = next();
            const char *const digits = "0123456789abcdef";
            const char *const found = c ? std::strchr(digits, c | 0x20) : nullptr;
            if (!found) {
                fail("damaged header: an unknown escape in a string");
            }
            code = code << 4 | uint32_t(found - digits);
        }
        // Halves of a pair stay by themselves: names are only compared.
        if (code < 0x80) {
            text += char(code);
        } else if (code < 0x800) {
            text += {char(0xc0 | code >> 6), char(0x80 | (code & 0x3f))};
        } else {
            text += {char(0xe0 | code >> 12), char(0x80 | (code >> 6 & 0x3f)),
                     char(0x80 | (code & 0x3f))};
        }
    }

    const char *at_, *end_;
};

std::vector<int64_t> checked_shape(const std::vector<uint64_t> &sizes) {
    for (const uint64_t size : sizes) {
        if (size > kLargestSize) {
            fail("a size of " + std::to_string(size) + ", more than this program can take");
        }
    }
    return {sizes.begin(), sizes.end()};
}

// What `shape` takes; fails where that is beyond 64 bits.
uint64_t bytes_of(const std::vector<int64_t> &shape, Element element) {
    uint64_t bytes = uint64_t(size_of(element));
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) {
        return 0;
    }
    for (const int64_t size : shape) {
        if (__builtin_mul_overflow(bytes, uint64_t(size), &bytes)) {
            fail("a shape of more bytes than 64 bits can count");
        }
    }
    return bytes;
}

}  // namespace

Source::Source(const std::string &path) : file_(std::fopen(path.c_str(), "rb")) {
    struct stat status;
    if (!file_ || fstat(fileno(file_.get()), &status) != 0) {
        fail(std::string("cannot be opened: ") + std::strerror(errno));
    }
    if (!S_ISREG(status.st_mode)) {
        fail("is not a regular file");
    }
    size_ = uint64_t(status.st_size);
}

Source::Source(std::vector<char> bytes) : bytes_(std::move(bytes)), size_(bytes_.size()) {
}

std::vector<char> Source::read(uint64_t offset, uint64_t size) const {
    if (offset > size_ || size > size_ - offset) {
        fail("is cut off: it has " + std::to_string(size_) + " bytes, and something of " +
             std::to_string(size) + " should begin at " + std::to_string(offset));
    }
    if (!file_) {
        const auto begin = bytes_.begin() + std::ptrdiff_t(offset);
        return {begin, begin + std::ptrdiff_t(size)};
    }
    std::vector<char> result(size);
    if (fseeko(file_.get(), off_t(offset), SEEK_SET) != 0 ||
        std::fread(result.data(), 1, size, file_.get()) != size) {
        fail("cannot be read");
    }
    return result;
}

uint64_t Source::number(uint64_t offset, int bytes) const {
    uint64_t value = 0;
    const std::vector<char> digits = read(offset, uint64_t(bytes));
    for (int i = bytes - 1; i >= 0; i--) {
        value = value << 8 | uint8_t(digits[size_t(i)]);
    }
    return value;
}

int size_of(Element element) {
    for (const NamedElement &e : kElements) {
        if (e.element == element) {
            return e.size;
        }
    }
    return 0;
}

bool is_float(Element element) {
    return element == Element::float16 || element == Element::bfloat16 ||
           element == Element::float32 || element == Element::float64;
}

Entry read_npy(const Source &source) {
    if (source.size() < 10 || source.number(0, 6) != 0x59504d554e93) {  // \x93NUMPY
        fail("is not a .npy file");
    }
    const uint64_t version = source.number(6, 1);
    if (version < 1 || version > 3) {
        fail("is a .npy file of version " + std::to_string(version) +
             ", which this program doesn't know");
    }
    const int digits = version == 1 ? 2 : 4;
    const uint64_t header_size = source.number(8, digits);
    const std::vector<char> header = source.read(8 + uint64_t(digits), header_size);

    Entry entry;
    bool has_descr = false, has_order = false, has_shape = false;
    Scanner scanner(header);
    scanner.expect('{');
    while (!scanner.take('}')) {
        const std::string key = scanner.string();
        scanner.expect(':');
        if (key == "descr") {
            if (scanner.peek() == '[') {
                fail("has a dtype of several fields");
            }
            entry.dtype = scanner.string();
            has_descr = true;
        } else if (key == "fortran_order") {
            entry.fortran_order = scanner.take_word("True");
            if (!entry.fortran_order && !scanner.take_word("False")) {
                fail("damaged header: fortran_order is neither True nor False");
            }
            has_order = true;
        } else if (key == "shape") {
            entry.shape = checked_shape(scanner.numbers('(', ')'));
            has_shape = true;
        } else {
            fail("damaged header: it has " + quoted(key));
        }
        if (!scanner.take(',')) {
            scanner.expect('}');
            break;
        }
    }
    if (!has_descr || !has_order || !has_shape || !scanner.at_end()) {
        fail("damaged header: not a dictionary of descr, fortran_order and shape");
    }
    const bool has_byte_order = !entry.dtype.empty() && std::strchr("<>|=", entry.dtype[0]);
    entry.big_endian = has_byte_order && entry.dtype[0] == '>';
    entry.element = element_named(&NamedElement::npy, entry.dtype.substr(has_byte_order ? 1 : 0));
    entry.offset = 8 + uint64_t(digits) + header_size;
    const uint64_t held = source.size() - entry.offset;
    if (entry.element == Element::other) {
        entry.bytes = held;
        return entry;
    }
    entry.bytes = bytes_of(entry.shape, entry.element);
    if (entry.bytes != held) {
        fail("its header promises " + std::to_string(entry.bytes) + " bytes of data, it has " +
             std::to_string(held));
    }
    return entry;
}

std::map<std::string, Entry> read_safetensors(const Source &source) {
    constexpr uint64_t kLargestHeader = 100'000'000;  // the format's own limit
    if (source.size() < 8) {
        fail("is not a .safetensors file");
    }
    const uint64_t header_size = source.number(0, 8);
    if (header_size > std::min(kLargestHeader, source.size() - 8)) {
        fail("is not a .safetensors file, or is cut off: its header should have " +
             std::to_string(header_size) + " bytes");
    }
    const std::vector<char> header = source.read(8, header_size);
    const uint64_t data = 8 + header_size, data_size = source.size() - data;

    std::map<std::string, Entry> entries;
    const auto read_entry = [&](Scanner &scanner) {
        Entry entry;
        std::vector<uint64_t> offsets;
        bool has_dtype = false, has_shape = false;
        scanner.expect('{');
        for (bool more = !scanner.take('}'); more;
             more = scanner.take(',') || (scanner.expect('}'), false)) {
            const std::string key = scanner.string();
            scanner.expect(':');
            if (key == "dtype") {
                entry.dtype = scanner.string();
                has_dtype = true;
            } else if (key == "shape") {
                entry.shape = checked_shape(scanner.numbers('[', ']'));
                has_shape = true;
            } else if (key == "data_offsets") {
                offsets = scanner.numbers('[', ']');
            } else {
                scanner.skip_value();
            }
        }
        if (!has_dtype || !has_shape || offsets.size() != 2) {
            fail("it lacks a dtype, a shape or two data_offsets");
        }
        if (offsets[0] > offsets[1] || offsets[1] > data_size) {
            fail("its data_offsets are [" + std::to_string(offsets[0]) + ", " +
                 std::to_string(offsets[1]) + "], the file has " + std::to_string(data_size) +
                 " bytes of data");
        }
        entry.element = element_named(&NamedElement::safetensors, entry.dtype);
        entry.offset = data + offsets[0];
        entry.bytes = offsets[1] - offsets[0];
        if (entry.element != Element::other) {
            const uint64_t expected = bytes_of(entry.shape, entry.element);
            if (expected != entry.bytes) {
                fail("its shape takes " + std::to_string(expected) +
                     " bytes, its data_offsets are of " + std::to_string(entry.bytes));
            }
        }
        return entry;
    };

    Scanner scanner(header);
    scanner.expect('{');
    for (bool more = !scanner.take('}'); more;
         more = scanner.take(',') || (scanner.expect('}'), false)) {
        const std::string name = scanner.string();
        scanner.expect(':');
        if (name == "__metadata__") {
            scanner.skip_value();
            continue;
        }
        try {
            if (!entries.emplace(name, read_entry(scanner)).second) {
                fail("it is there twice");
            }
        } catch (const std::runtime_error &e) {
            fail(quoted(name) + ": " + e.what());
        }
    }
    if (!scanner.at_end()) {
        fail("damaged header: something follows its end");
    }

    // The format allows neither overlaps nor holes.
    std::vector<std::pair<std::string, Entry>> sorted(entries.begin(), entries.end());
    std::sort(sorted.begin(), sorted.end(), [](const auto &a, const auto &b) {
        return std::pair(a.second.offset, a.second.bytes) <
               std::pair(b.second.offset, b.second.bytes);
    });
    uint64_t end = data;
    for (const auto &[name, entry] : sorted) {
        if (entry.offset != end) {
            fail(quoted(name) + ": its data begin at " + std::to_string(entry.offset - data) +
                 ", those before it end at " + std::to_string(end - data));
        }
        end += entry.bytes;
    }
    if (end != source.size()) {
        fail(std::to_string(source.size() - end) + " bytes at its end belong to no entry");
    }
    return entries;
}

std::map<std::string, Member> read_npz(const Source &source) {
    // The directory's end is the last thing in the file but for a comment of up to 64 KiB.
    constexpr uint64_t kEnd = 22, kLongestComment = 65535;
    constexpr char kSignature[] = {'P', 'K', 5, 6};
    const uint64_t tail_size = std::min(source.size(), kEnd + kLongestComment);
    const uint64_t tail_at = source.size() - tail_size;
    const std::vector<char> tail = source.read(tail_at, tail_size);
    const auto found =
        std::find_end(tail.begin(), tail.end(), std::begin(kSignature), std::end(kSignature));
    if (found == tail.end() || uint64_t(tail.end() - found) < kEnd) {
        fail("is not a .npz file, or is cut off");
    }
    const uint64_t end = tail_at + uint64_t(found - tail.begin());
    const uint64_t count = source.number(end + 10, 2);
    uint64_t at = source.number(end + 16, 4);
    std::map<std::string, Member> members;
    for (uint64_t i = 0; i < count; i++) {
        if (source.number(at, 4) != 0x02014b50) {
            fail("damaged directory");
        }
        const uint64_t name_size = source.number(at + 28, 2);
        const std::vector<char> bytes = source.read(at + 46, name_size);
        std::string name(bytes.begin(), bytes.end());
        const Member member{source.number(at + 10, 2), source.number(at + 20, 4),
                            source.number(at + 24, 4), source.number(at + 16, 4),
                            source.number(at + 42, 4)};
        at += 46 + name_size + source.number(at + 30, 2) + source.number(at + 32, 2);
        constexpr size_t kSuffix = 4;
        if (name.size() > kSuffix && name.compare(name.size() - kSuffix, kSuffix, ".npy") == 0) {
            name.resize(name.size() - kSuffix);
            if (!members.emplace(name, member).second) {
                fail(quoted(name) + ": it is there twice");
            }
        }
    }
    return members;
}

std::vector<char> unpack(const Source &source, const std::string &name, const Member &member) {
    // What deflate makes of its input at most: 258 bytes of 2 bits.
    constexpr uint64_t kLargestRatio = 1032;
    if (source.number(member.header, 4) != 0x04034b50) {
        fail("damaged directory");
    }
    const uint64_t name_size = source.number(member.header + 26, 2);
    const std::vector<char> local_name = source.read(member.header + 30, name_size);
    if (std::string(local_name.begin(), local_name.end()) != name + ".npy") {
        fail("damaged directory: it points to another entry");
    }
    if (source.number(member.header + 6, 2) & 1) {
        fail("is encrypted");
    }
    constexpr uint64_t kElsewhere = 0xffffffff;  // 64 bits of it stand in an extension
    if (member.size == kElsewhere || member.packed_size == kElsewhere) {
        fail("has 4 GiB or more, which this program doesn't read");
    }
    const bool stored = member.method == 0;
    if (!stored && member.method != 8) {
        fail("is compressed by a method that this program doesn't know");
    }
    if (stored ? member.size != member.packed_size
               : member.size > member.packed_size * kLargestRatio) {
        fail("the directory promises " + std::to_string(member.size) + " bytes from " +
             std::to_string(member.packed_size));
    }
    const uint64_t begin = member.header + 30 + name_size + source.number(member.header + 28, 2);
    std::vector<char> packed = source.read(begin, member.packed_size);
    std::vector<char> out;
    if (stored) {
        out = std::move(packed);
    } else {
        out.resize(member.size);
        z_stream stream = {};
        Bytef nothing;
        stream.next_in = reinterpret_cast<Bytef *>(packed.data());
        stream.avail_in = uInt(packed.size());
        stream.next_out = out.empty() ? &nothing : reinterpret_cast<Bytef *>(out.data());
        stream.avail_out = uInt(out.size());
        int status = inflateInit2(&stream, -15);  // bare deflate, without zlib's own header
        if (status == Z_OK) {
            status = inflate(&stream, Z_FINISH);
            inflateEnd(&stream);
        }
        if (status != Z_STREAM_END || stream.avail_out != 0) {
            fail("damaged data");
        }
    }
    if (crc32_z(0, reinterpret_cast<const Bytef *>(out.data()), out.size()) != member.crc) {
        fail("damaged data: the checksum differs");
    }
    return out;
}

std::string quoted(const std::string &text) {
    constexpr size_t kLongest = 100;
    std::string result = "\"";
    for (const char c : text.substr(0, kLongest)) {
        result += uint8_t(c) < 0x20 || uint8_t(c) == 0x7f ? '?' : c;
    }
    return result + (text.size() > kLongest ? "...\"" : "\"");
}

}  // namespace formats
