// What .npy, .npz and .safetensors files say they hold, checked against what they do hold before any of it is read:
// files come from elsewhere, and their headers may be wrong in any way.
#ifndef HBN_EXAMPLES_DEMO_FORMATS_H
#define HBN_EXAMPLES_DEMO_FORMATS_H

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace formats {

// Everything here throws std::runtime_error: one line that says what is wrong, without the file's name.

// Bytes by their place: of a file, or of an entry of one.
class Source {
public:
    explicit Source(const std::string &path);
    explicit Source(std::vector<char> bytes);

    uint64_t size() const {
        return size_;
    }
    // Fails before it takes any memory where the source is shorter.
    std::vector<char> read(uint64_t offset, uint64_t size) const;
    // Little-endian, of 1 to 8 bytes.
    uint64_t number(uint64_t offset, int bytes) const;

private:
    struct Close {
        void operator()(std::FILE *file) const {
            std::fclose(file);
        }
    };
    std::unique_ptr<std::FILE, Close> file_;  // or else bytes_
    std::vector<char> bytes_;
    uint64_t size_ = 0;
};

enum class Element {
    boolean,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
    float16,
    bfloat16,
    float32,
    float64,
    other,  // nothing that this program reads
};
int size_of(Element element);
bool is_float(Element element);

// An array within a source. What `element` is other, `bytes` is not checked against `shape`.
struct Entry {
    Element element = Element::other;
    std::string dtype;  // as the file has it, for messages
    std::vector<int64_t> shape;
    bool fortran_order = false, big_endian = false;
    uint64_t offset = 0, bytes = 0;
};

Entry read_npy(const Source &source);

// By name.
std::map<std::string, Entry> read_safetensors(const Source &source);

// The members of a zip file by name, without ".npy", as NumPy's savez and savez_compressed write them.
struct Member {
    uint64_t method, packed_size, size, crc, header;
};
std::map<std::string, Member> read_npz(const Source &source);
std::vector<char> unpack(const Source &source, const std::string &name, const Member &member);

// As it can stand in a message of one line: in quotes, shortened, without control characters.
std::string quoted(const std::string &text);

}  // namespace formats

#endif
