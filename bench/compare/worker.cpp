// Times two builds of hbn against each other, for compare.py.
//
//     compare_worker --operations      prints the operations' names, each with 1 if it has tensors, else 0
//     compare_worker BASE.so NEW.so    first prints a line about each library, then reads cells, one a line:
//         OPERATION DTYPE LAYOUT N C H W THREADS SECONDS
//     and prints a line of JSON for each.
#include "bench/compare/buffers.h"
#include "bench/compare/library.h"
#include "bench/compare/operations.h"
#include "bench/rounds.h"

#include <sys/prctl.h>

#include <algorithm>
#include <exception>
#include <iomanip>
#include <iostream>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace hbn::compare;

struct Cell {
    std::string operation, dtype, layout;
    int64_t sizes[4];
    int threads;
    double seconds;
};

// One library's part in a cell.
class Side {
public:
    explicit Side(const Library &library) : library_(library) {
    }

    // Makes one call on fresh numbers, and keeps its outputs' hashes. False if the library refuses.
    bool prepare(const Operation &operation, Buffers &buffers, int threads) {
        hashes.clear();
        error.clear();
        if (library_.set_num_threads(threads) != kOk) {
            error = library_.last_error();
            return false;
        }
        for (const Convention &tried : operation.conventions) {
            for (const Output &output : operation.outputs) {
                (buffers.*output.buffer).poison();
            }
            buffers.reset_vectors();
            arguments_.emplace(buffers, tried);
            const int status = operation.call(library_, *arguments_);
            if (status == kOk) {
                convention = tried;
                error.clear();
                for (const Output &output : operation.outputs) {
                    hashes.push_back((buffers.*output.buffer).hash());
                }
                timed.emplace([this, call = operation.call] { call(library_, *arguments_); },
                              threads);
                return true;
            }
            if (error.empty()) {  // the first convention's, which is the current one
                error = status == kMissing ? "no such function" : library_.last_error();
            }
        }
        return false;
    }

    Convention convention;
    std::vector<uint64_t> hashes;  // of the operation's outputs
    std::string error;             // why the library refused
    std::optional<hbn::bench::Timed> timed;

private:
    const Library &library_;
    std::optional<Arguments> arguments_;
};

// Names of the outputs that have other bits. Saved statistics of two dtypes can't be compared.
std::string differences(const Operation &operation, const Side &base, const Side &changed) {
    std::ostringstream names;
    for (size_t i = 0; i < operation.outputs.size(); i++) {
        const Output &output = operation.outputs[i];
        const bool saved =
            output.buffer == &Buffers::saved_mean || output.buffer == &Buffers::saved_invstd;
        if (saved && base.convention.saved != changed.convention.saved) {
            continue;
        }
        if (base.hashes[i] != changed.hashes[i]) {
            names << (names.tellp() ? ", " : "") << std::quoted(output.name);
        }
    }
    return names.str();
}

void measure(const Cell &cell, Buffers &buffers, Side &base, Side &changed) {
    const Operation &operation = operation_of(cell.operation);
    TensorForm form;
    form.dtype = dtype_of(cell.dtype);
    form.layout = layout_of(cell.layout);
    std::copy_n(cell.sizes, 4, form.sizes);
    buffers.prepare(form);
    const bool base_does = base.prepare(operation, buffers, cell.threads);
    const bool changed_does = changed.prepare(operation, buffers, cell.threads);
    std::cout << "{\"base_error\": " << std::quoted(base.error)
              << ", \"new_error\": " << std::quoted(changed.error);
    if (base_does && changed_does) {
        buffers.reset_vectors();
        const std::vector<hbn::bench::Timed *> contestants = {&*base.timed, &*changed.timed};
        const int repeats = hbn::bench::choose_repeats(contestants);
        hbn::bench::run_rounds(contestants, repeats, {cell.threads, cell.seconds, true});
        const std::vector<double> ratios = hbn::bench::ratios(*base.timed, *changed.timed);
        std::cout << ", \"base_us\": " << base.timed->fastest() * 1e6
                  << ", \"new_us\": " << changed.timed->fastest() * 1e6
                  << ", \"repeats\": " << repeats << ", \"rounds\": " << ratios.size()
                  << ", \"median_ratio\": " << hbn::bench::median(ratios)
                  << ", \"base_convention\": " << std::quoted(base.convention.description())
                  << ", \"new_convention\": " << std::quoted(changed.convention.description())
                  << ", \"differing\": [" << differences(operation, base, changed) << "]";
    }
    std::cout << "}" << std::endl;
}

// Two copies of the library in one process must not share anything: neither threads nor settings.
void check_apart(const Library &base, const Library &changed) {
    base.set_num_threads(1);
    changed.set_num_threads(2);
    if (base.get_num_threads() != 1 || changed.get_num_threads() != 2) {
        throw std::runtime_error(
            "the two libraries share their state: a symbol of one binds to the other");
    }
}

void work(const char *base_path, const char *new_path) {
    // What the libraries allocate themselves is on ordinary pages, too.
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    const Library base_library(base_path), new_library(new_path);
    check_apart(base_library, new_library);
    std::cout << base_library.description() << '\n' << new_library.description() << std::endl;
    Buffers buffers;
    Side base(base_library), changed(new_library);
    std::string line;
    while (std::getline(std::cin, line)) {
        Cell cell;
        std::istringstream words(line);
        words >> cell.operation >> cell.dtype >> cell.layout;
        words >> cell.sizes[0] >> cell.sizes[1] >> cell.sizes[2] >> cell.sizes[3];
        words >> cell.threads >> cell.seconds;
        if (!words) {
            throw std::runtime_error("not a cell: " + line);
        }
        measure(cell, buffers, base, changed);
    }
}

}  // namespace

int main(int argc, char **argv) {
    try {
        if (argc == 2 && std::string(argv[1]) == "--operations") {
            for (const Operation &operation : operations()) {
                std::cout << operation.name << ' ' << operation.has_tensors << '\n';
            }
        } else if (argc == 3) {
            work(argv[1], argv[2]);
        } else {
            std::cerr << "usage: compare_worker --operations | BASE.so NEW.so\n";
            return 2;
        }
    } catch (const std::exception &e) {
        std::cerr << "compare_worker: " << e.what() << '\n';
        return 1;
    }
    return 0;
}
