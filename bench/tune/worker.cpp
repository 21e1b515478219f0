// Serves the tuner: loads kernels that it compiled, checks their results and times them against hbn's own. README.md beside
// this file says what lines it reads and what it answers.
#include "bench/compare/buffers.h"
#include "bench/compare/library.h"
#include "bench/rounds.h"
#include "bench/tune/bound.h"
#include "bench/tune/kernels.h"
#include "bench/tune/layers.h"
#include "bench/tune/problem.h"
#include "bench/tune/view.h"
#include "runtime/engine/kernels.h"
#include "runtime/engine/layout.h"
#include "runtime/engine/tuning.h"
#include "runtime/halide/scratch.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <exception>
#include <iomanip>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace hbn::tune {

namespace {

using internal::CompiledKernel;
using internal::Layout;
using internal::Tuning;

// ---- words of lines

using Words = std::vector<std::string>;

Words words_of(const std::string &line, char separator) {
    Words words;
    std::istringstream stream(line);
    std::string word;
    while (std::getline(stream, word, separator)) {
        if (!word.empty()) {
            words.push_back(word);
        }
    }
    return words;
}

int64_t number_of(const std::string &word, const char *what, int64_t least, int64_t most) {
    int64_t number = 0;
    const char *end = word.data() + word.size();
    const auto [rest, error] = std::from_chars(word.data(), end, number);
    if (error != std::errc() || rest != end || number < least || number > most) {
        throw std::runtime_error(std::string(what) + " '" + word + "' is not a whole number from " +
                                 std::to_string(least) + " to " + std::to_string(most));
    }
    return number;
}

double seconds_of(const std::string &word) {
    std::istringstream stream(word);
    double seconds = -1;
    if (!(stream >> seconds) || !stream.eof() || !(seconds >= 0 && seconds <= 300)) {
        throw std::runtime_error("SECONDS '" + word + "' is not a number from 0 to 300");
    }
    return seconds;
}

Layout kernel_layout_of(const std::string &name) {
    std::string names;
    for (int i = 0; i < internal::kLayouts; i++) {
        if (name == internal::kLayoutNames[i]) {
            return Layout(i);
        }
        names += std::string(i > 0 ? ", " : "") + internal::kLayoutNames[i];
    }
    throw std::runtime_error("KERNEL_LAYOUT '" + name + "' is none of " + names);
}

// ---- answers

std::string quoted(const std::string &text) {
    std::string json = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            json += '\\';
        }
        json += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
    return json + "\"";
}

std::string number(double value) {
    std::ostringstream text;
    text << std::setprecision(9) << value;
    return text.str();
}

const char *boolean(bool value) {
    return value ? "true" : "false";
}

// ---- candidates

void succeed(hbn_status status) {
    if (status != HBN_OK) {
        throw std::runtime_error(hbn_last_error());
    }
}

struct Candidate {
    std::string kernel, dtype;
    Layout layout;
    CompiledKernel compiled;
};

template<typename F>
F symbol_of(void *library, const std::string &name) {
    void *address = dlsym(library, name.c_str());
    if (!address) {
        throw std::runtime_error(std::string("there is no symbol ") + name);
    }
    return reinterpret_cast<F>(address);
}

// Of RFC 4648, as Python's base64 writes it.
std::string decoded(const std::string &base64) {
    static const std::string digits =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const size_t end = std::min(base64.find('='), base64.size());
    if (base64.size() % 4 != 0 || base64.size() - end > 2) {
        throw std::runtime_error("LIBRARY is not in base64, or not whole");
    }
    std::string bytes;
    uint32_t bits = 0;
    for (size_t i = 0; i < end; i++) {
        const size_t digit = digits.find(base64[i]);
        if (digit == digits.npos) {
            throw std::runtime_error("LIBRARY is not in base64, or not whole");
        }
        bits = bits << 6 | uint32_t(digit);
        if (i % 4 != 0) {
            bytes += char(bits >> (6 - 2 * (i % 4)) & 0xff);
        }
    }
    return bytes;
}

// A file in memory. Nothing of it is left where the program ends, however it does.
class MemoryFile {
public:
    explicit MemoryFile(const std::string &bytes)
        : number_(memfd_create("candidate", MFD_CLOEXEC)) {
        if (number_ < 0) {
            throw std::runtime_error(std::string("no file for the library: ") + strerror(errno));
        }
        if (write(number_, bytes.data(), bytes.size()) != ssize_t(bytes.size())) {
            close(number_);
            throw std::runtime_error("there is no memory for the library");
        }
    }
    MemoryFile(const MemoryFile &) = delete;
    MemoryFile &operator=(const MemoryFile &) = delete;
    ~MemoryFile() {
        if (number_ >= 0) {
            close(number_);
        }
    }

    std::string path() const {
        return "/proc/self/fd/" + std::to_string(number_);
    }
    // Where it was loaded: dlopen knows by its path what that was, so that no other file may have it.
    void keep() {
        number_ = -1;
    }

private:
    int number_;
};

struct Range {
    uintptr_t first, last;
};

// Where the code of one object that is loaded lies.
struct Code {
    uintptr_t base;  // of all addresses in its file
    Range range;
};

std::vector<Code> loaded_code() {
    std::vector<Code> all;
    const auto visit = [](dl_phdr_info *info, size_t, void *found) {
        for (int i = 0; i < info->dlpi_phnum; i++) {
            const ElfW(Phdr) &part = info->dlpi_phdr[i];
            if (part.p_type == PT_LOAD && (part.p_flags & PF_X)) {
                const uintptr_t first = uintptr_t(info->dlpi_addr) + uintptr_t(part.p_vaddr);
                static_cast<std::vector<Code> *>(found)->push_back(
                    {uintptr_t(info->dlpi_addr), {first, first + uintptr_t(part.p_memsz) - 1}});
            }
        }
        return 0;
    };
    dl_iterate_phdr(visit, &all);
    return all;
}

Code code_around(uintptr_t address) {
    for (const Code &code : loaded_code()) {
        if (code.range.first <= address && address <= code.range.last) {
            return code;
        }
    }
    throw std::runtime_error("the kernel is in no library");
}

// It stays loaded: a call may be all that refers to it.
CompiledKernel load(MemoryFile file, const std::string &symbol) {
    void *library = dlopen(file.path().c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        throw std::runtime_error(dlerror());
    }
    file.keep();
    CompiledKernel kernel;
    kernel.call = symbol_of<int (*)(void **)>(library, symbol + "_argv");
    kernel.metadata =
        symbol_of<const halide_filter_metadata_t *(*)()>(library, symbol + "_metadata");
    return kernel;
}

// ---- cells

struct Cell {
    const KernelCall *call;
    std::string dtype;
    int threads;
    std::vector<std::unique_ptr<Problem>> problems;  // of each inputs one, ordinary ones first
    std::vector<std::vector<uint64_t>> hashes;       // of what hbn's own kernels make of each
    std::vector<Worst> worst;                        // of the same
    std::unique_ptr<Layers> layers;                  // what is timed, made of the ordinary one
};

// ---- the worker

class Worker {
public:
    // The answer to a line, in JSON.
    std::string answer(const std::string &line) {
        const Words words = words_of(line, ' ');
        if (words.empty()) {
            throw std::runtime_error("the line is empty");
        }
        if (words[0] == "candidate" && words.size() == 7) {
            return candidate(words);
        }
        if (words[0] == "cell" &&
            (words.size() == 9 || (words.size() == 10 && words[9] == "timing"))) {
            return cell(words);
        }
        if (words[0] == "check" && words.size() >= 2) {
            return check(words);
        }
        if (words[0] == "call" && words.size() >= 2) {
            return call(words);
        }
        if (words[0] == "measure" && words.size() >= 2) {
            return measure(words);
        }
        if (words[0] == "view") {
            return view(words);
        }
        if (words[0] == "machine" && words.size() == 1) {
            return machine();
        }
        constexpr size_t kMuch = 200;  // for an error: a library may be in the line
        throw std::runtime_error(
            "expected `machine`, `candidate ID SYMBOL KERNEL DTYPE KERNEL_LAYOUT LIBRARY`, "
            "`cell KERNEL DTYPE LAYOUT N C H W THREADS [timing]`, `view [THRESHOLD=VALUE ...]`, "
            "`check ID [THRESHOLD=VALUE ...]`, `call ID [THRESHOLD=VALUE ...]` or "
            "`measure SECONDS [ID:THRESHOLD=VALUE:... ...]`, got '" +
            line.substr(0, kMuch) + (line.size() > kMuch ? "...'" : "'"));
    }

private:
    std::string candidate(const Words &words) {
        const std::string &id = words[1];
        if (id == "-" || id == "default" || id.find(':') != id.npos || candidates_.count(id)) {
            throw std::runtime_error(
                "ID '" + id + "' must be a new one, without colons, and neither - nor default");
        }
        Candidate loaded{words[3], words[4], kernel_layout_of(words[5]), {}};
        const KernelCall &call = kernel_call_of(loaded.kernel);
        const hbn_dtype dtype = hbn_dtype(int(compare::dtype_of(loaded.dtype)));
        loaded.compiled = load(MemoryFile(decoded(words[6])), words[2]);
        Tuning tuning;
        tuning.kernels[int(loaded.layout)] = loaded.compiled;
        // Tells whether it takes what the library's own does.
        succeed(internal::set_tuning(call.kernel, dtype, tuning));
        internal::clear_tunings();
        candidates_[id] = loaded;
        const Code code = code_around(reinterpret_cast<uintptr_t>(loaded.compiled.call));
        std::ostringstream json;
        json << "{\"candidate\": " << quoted(id) << ", \"base\": " << code.base
             << ", \"code\": " << range_of(code) << "}";
        return json.str();
    }

    static std::string range_of(const Code &code) {
        return "[" + std::to_string(code.range.first) + ", " + std::to_string(code.range.last) +
               "]";
    }

    std::string cell(const Words &words) {
        cell_.reset();  // its memory first
        auto fresh = std::make_unique<Cell>();
        fresh->call = &kernel_call_of(words[1]);
        compare::TensorForm form;
        form.dtype = compare::dtype_of(words[2]);
        form.layout = compare::layout_of(words[3]);
        if (form.layout == compare::Layout::strided) {
            throw std::runtime_error("LAYOUT 'strided' is none of nchw, nhwc");
        }
        int64_t elements = 1;
        for (int d = 0; d < 4; d++) {
            form.sizes[d] = number_of(words[size_t(d) + 4], "size", 1, kMostElements);
            elements *= form.sizes[d];
            if (elements > kMostElements) {
                throw std::runtime_error("the tensors have more than 2^31 - 1 elements");
            }
        }
        fresh->dtype = words[2];
        fresh->threads = int(number_of(words[8], "THREADS", 1, 1024));
        succeed(hbn_status(library_.set_num_threads(fresh->threads)));
        use(*fresh, Tuning());
        const bool for_times_alone = words.size() == 10;
        Worst worst;
        for (const Inputs &inputs : all_inputs(form.dtype, form.channels())) {
            fresh->problems.push_back(
                std::make_unique<Problem>(library_, *fresh->call, form, inputs));
            Problem &problem = *fresh->problems.back();
            problem.run_afresh();
            if (for_times_alone) {
                break;
            }
            fresh->hashes.push_back(problem.hashes());
            fresh->worst.push_back(problem.worst());
            worst.take(fresh->worst.back());
        }
        if (!(worst.share <= 1)) {
            throw std::runtime_error("hbn's own kernel is wrong: " + worst.what);
        }
        Problem &ordinary = *fresh->problems[0];
        fresh->layers = std::make_unique<Layers>(ordinary, fresh->threads);
        ordinary.run();
        const internal::Choice choice = internal::last_view();
        bench::Timed timed = timer(*fresh, Tuning());
        const std::vector<bench::Timed *> contestants = {&timed};
        bench::RoundOptions options{fresh->threads};
        options.calls_before = fresh->layers->calls_to_settle();
        bench::run_rounds(contestants, bench::choose_repeats(contestants), options);
        cell_ = std::move(fresh);
        std::ostringstream json;
        json << "{\"cell\": " << quoted(joined(words))
             << ", \"default_seconds\": " << number(timed.fastest())
             << ", \"bytes\": " << ordinary.bytes()
             << ", \"kernel_layout\": " << quoted(internal::kLayoutNames[int(choice.layout)])
             << ", \"worst\": " << number(worst.share) << ", \"copies\": " << cell_->layers->count()
             << ", \"bound\": " << boolean(Bound::exists(*cell_->call, hbn_dtype(int(form.dtype))))
             << "}";
        return json.str();
    }

    std::string machine() {
        std::string code;
        for (const Code &one : loaded_code()) {
            code += (code.empty() ? "" : ", ") + range_of(one);
        }
        return "{\"cpu\": " + quoted(internal::processor_name()) +
               ", \"instruction_set\": " + quoted(hbn_instruction_set()) +
               ", \"threads\": " + std::to_string(library_.get_num_threads()) + ", \"code\": [" +
               code + "]}";
    }

    std::string view(const Words &words) {
        Cell &cell = current_cell();
        const Tuning tuning = tuning_of(cell, "-", {words.begin() + 1, words.end()});
        return "{\"view\": " + view_of(*cell.call, cell.problems[0]->buffers(), tuning.thresholds) +
               "}";
    }

    std::string check(const Words &words) {
        Cell &cell = current_cell();
        if (cell.hashes.empty()) {
            throw std::runtime_error("the cell is for `timing` alone");
        }
        use(cell, tuning_of(cell, words[1], {words.begin() + 2, words.end()}));
        const int64_t overflows = internal::scratch_overflows();
        Worst worst;
        bool same_bits = true;
        internal::Choice choice{};
        for (size_t i = 0; i < cell.problems.size(); i++) {
            Problem &problem = *cell.problems[i];
            try {
                problem.run_afresh();
            } catch (const std::runtime_error &e) {
                return "{\"ok\": false, \"why\": " + quoted(e.what()) + "}";
            }
            choice = internal::last_view();
            const bool same = problem.hashes() == cell.hashes[i];
            worst.take(same ? cell.worst[i] : problem.worst());
            same_bits = same_bits && same;
        }
        std::string why = worst.share <= 1 ? "" : worst.what;
        if (why.empty() && internal::scratch_overflows() > overflows) {
            why = "it asks for more scratch memory than hbn books for it";
        }
        std::ostringstream json;
        json << "{\"ok\": " << boolean(why.empty())
             << ", \"worst\": " << number(std::min(worst.share, kMostShare))
             << ", \"kernel_layout\": " << quoted(internal::kLayoutNames[int(choice.layout)])
             << ", \"used\": " << boolean(choice.tuned_kernel)
             << ", \"same_bits\": " << boolean(same_bits);
        if (!why.empty()) {
            json << ", \"why\": " << quoted(why);
        }
        json << "}";
        return json.str();
    }

    std::string call(const Words &words) {
        Cell &cell = current_cell();
        use(cell, tuning_of(cell, words[1], {words.begin() + 2, words.end()}));
        if (cell.problems[0]->run() != compare::kOk) {
            throw std::runtime_error(hbn_last_error());
        }
        const internal::Choice choice = internal::last_view();
        return std::string("{\"called\": true, \"kernel_layout\": ") +
               quoted(internal::kLayoutNames[int(choice.layout)]) +
               ", \"used\": " + boolean(choice.tuned_kernel) + "}";
    }

    std::string measure(const Words &words) {
        Cell &cell = current_cell();
        const double seconds = seconds_of(words[1]);
        Words names = {"default"};
        names.insert(names.end(), words.begin() + 2, words.end());
        std::vector<bench::Timed> timed;
        for (size_t i = 0; i < names.size(); i++) {
            if (std::count(names.begin(), names.end(), names[i]) > 1) {
                throw std::runtime_error("contestant '" + names[i] + "' is there twice");
            }
            if (i > 0 && (names[i] == "bound" || names[i] == "bound:streaming")) {
                timed.push_back(bound_timer(cell, names[i] != "bound"));
                continue;
            }
            Tuning tuning;
            if (i > 0) {
                const Words parts = words_of(names[i], ':');
                tuning = tuning_of(cell, parts[0], {parts.begin() + 1, parts.end()});
            }
            timed.push_back(timer(cell, tuning));
        }
        // What is much slower would take its time in every round, and is slow enough for one call to tell.
        std::vector<bench::Timed *> contestants;
        std::vector<double> once;
        for (bench::Timed &contestant : timed) {
            contestant.prepare();
            once.push_back(contestant.run(1));
            if (once.back() > kTooSlow * once[0]) {  // perhaps for what else the machine did
                once.back() = std::min(once.back(), contestant.run(1));
            }
            if (once.back() <= kTooSlow * once[0]) {
                contestants.push_back(&contestant);
            }
        }
        const int repeats = bench::choose_repeats(contestants);
        bench::RoundOptions options{cell.threads, seconds};
        options.calls_before = cell.layers->calls_to_settle();
        options.most_seconds = kMostSeconds + 3 * seconds;
        bench::run_rounds(contestants, repeats, options);
        std::ostringstream json, all_ratios, too_slow;
        for (size_t i = 0; i < timed.size(); i++) {
            if (timed[i].samples().empty()) {
                too_slow << (too_slow.str().empty() ? "" : ", ") << quoted(names[i]) << ": "
                         << number(once[i]);
                continue;
            }
            json << (i > 0 ? ", " : "{") << quoted(names[i])
                 << ": {\"fastest\": " << number(timed[i].fastest())
                 << ", \"median\": " << number(bench::median(timed[i].samples())) << "}";
            if (i == 0) {
                continue;
            }
            all_ratios << (all_ratios.str().empty() ? "" : ", ") << quoted(names[i]) << ": [";
            const std::vector<double> ratios = bench::ratios(timed[0], timed[i]);
            for (size_t round = 0; round < ratios.size(); round++) {
                all_ratios << (round > 0 ? ", " : "") << number(ratios[round]);
            }
            all_ratios << "]";
        }
        json << ", \"repeats\": " << repeats << ", \"ratios\": {" << all_ratios.str() << "}";
        if (!too_slow.str().empty()) {
            json << ", \"too_slow\": {" << too_slow.str() << "}";
        }
        json << "}";
        return json.str();
    }

    Cell &current_cell() {
        if (!cell_) {
            throw std::runtime_error("there is no cell yet");
        }
        return *cell_;
    }

    // Of a candidate, or `-`, and thresholds as NAME=VALUE.
    Tuning tuning_of(const Cell &cell, const std::string &id, const Words &thresholds) const {
        Tuning tuning;
        if (id != "-") {
            const auto found = candidates_.find(id);
            if (found == candidates_.end()) {
                throw std::runtime_error("no candidate '" + id + "' was loaded");
            }
            const Candidate &candidate = found->second;
            const char *kernel = internal::row(cell.call->kernel).name;
            if (candidate.kernel != kernel || candidate.dtype != cell.dtype) {
                throw std::runtime_error("candidate '" + id + "' is for " + candidate.kernel +
                                         " of " + candidate.dtype + ", the cell for " + kernel +
                                         " of " + cell.dtype);
            }
            tuning.kernels[int(candidate.layout)] = candidate.compiled;
        }
        for (const std::string &threshold : thresholds) {
            const size_t equals = threshold.find('=');
            if (equals == threshold.npos) {
                throw std::runtime_error("expected THRESHOLD=VALUE, got '" + threshold + "'");
            }
            succeed(internal::set_threshold(threshold.substr(0, equals).c_str(),
                                            threshold.substr(equals + 1).c_str(),
                                            &tuning.thresholds));
        }
        return tuning;
    }

    static void use(const Cell &cell, const Tuning &tuning) {
        const hbn_dtype dtype = hbn_dtype(int(compare::dtype_of(cell.dtype)));
        succeed(internal::set_tuning(cell.call->kernel, dtype, tuning));
    }

    static bench::Timed timer(Cell &cell, const Tuning &tuning) {
        bench::Timed timed(
            [&cell] {
                if (cell.layers->next().run() != compare::kOk) {
                    throw std::runtime_error(hbn_last_error());
                }
            },
            cell.threads);
        timed.prepare = [&cell, tuning] { use(cell, tuning); };
        return timed;
    }

    static bench::Timed bound_timer(Cell &cell, bool streaming) {
        const hbn_dtype dtype = hbn_dtype(int(compare::dtype_of(cell.dtype)));
        if (!Bound::exists(*cell.call, dtype)) {
            throw std::runtime_error("there is no bound for this kernel");
        }
        const auto bound = std::make_shared<Bound>(*cell.call, dtype, cell.threads, streaming);
        return {[&cell, bound] { bound->run(cell.layers->next().buffers()); }, cell.threads};
    }

    static std::string joined(const Words &words) {
        std::string line;
        for (size_t i = 1; i < words.size(); i++) {
            line += (i > 1 ? " " : "") + words[i];
        }
        return line;
    }

    static constexpr int64_t kMostElements = (int64_t(1) << 31) - 1;
    static constexpr double kMostShare = 1e30;  // JSON has no infinity
    // Times as long as the default's calls.
    static constexpr double kTooSlow = 30;
    // Of rounds, beside three times what is asked for; unless that is less than the fewest rounds take.
    static constexpr double kMostSeconds = 10;

    const compare::Library library_ = compare::Library::of_this_program();
    std::map<std::string, Candidate> candidates_;
    std::unique_ptr<Cell> cell_;
};

// Whoever has asked has given up by then, and may have been unable to end a worker on another machine.
constexpr unsigned kMostSecondsForLine = 2000;

void work() {
    // What hbn allocates itself is on ordinary pages, too.
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    // Each candidate is a file.
    rlimit files{};
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    Worker worker;
    std::string line;
    while (std::getline(std::cin, line)) {
        std::string answer;
        alarm(kMostSecondsForLine);
        try {
            answer = worker.answer(line);
        } catch (const std::exception &e) {
            answer = "{\"error\": " + quoted(e.what()) + "}";
        }
        alarm(0);
        std::cout << answer << std::endl;
    }
}

}  // namespace

}  // namespace hbn::tune

int main(int argc, char **) {
    if (argc != 1) {
        std::cerr << "usage: tune_worker, which reads lines; bench/tune/README.md says which\n";
        return 2;
    }
    try {
        hbn::tune::work();
    } catch (const std::exception &e) {
        std::cerr << "tune_worker: " << e.what() << '\n';
        return 1;
    }
    return 0;
}
