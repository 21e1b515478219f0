// hbn._core: the operations of runtime/operations.def for Python's arrays, each a function of its arguments by position.
// Outputs are the caller's; the modules above allocate them and know what users may leave out. The GIL is released
// while kernels run.
#include "arrays.h"
#include "torch_tensor.h"

#include "runtime/checks.h"
#include "runtime/engine/problem.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

namespace hbn::python {
namespace {

using internal::Arg;
using internal::Direction;
using internal::Given;
using internal::kMostUses;
using internal::Operation;
using internal::OperationRow;
using internal::Role;
using internal::Use;

[[noreturn]] void raise_error(hbn_status status) {
    PyObject *type = PyExc_RuntimeError;
    switch (status) {
    case HBN_INVALID_ARGUMENT:
        type = PyExc_ValueError;
        break;
    case HBN_OUT_OF_MEMORY:
        type = PyExc_MemoryError;
        break;
    case HBN_UNSUPPORTED:
        type = PyExc_NotImplementedError;
        break;
    default:
        break;
    }
    raise(type, "%s", hbn_last_error());
}

void raise_on_error(hbn_status status) {
    if (status != HBN_OK) {
        raise_error(status);
    }
}

// ---- arguments

double number(PyObject *given, const char *name) {
    if (given == Py_True || given == Py_False) {
        return given == Py_True;
    }
    const double value = PyFloat_AsDouble(given);
    if (value == -1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            raise(PyExc_TypeError, "%s must be a number, got %s", name, Py_TYPE(given)->tp_name);
        }
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            raise(PyExc_ValueError, "%s is too large for a float", name);
        }
        throw nb::python_error();
    }
    return value;
}

// From (name, negative_slope, min_val, max_val): PyTorch's names of what hbn.h calls alpha and beta.
hbn_activation activation(PyObject *given, const char *name) {
    // Which of an activation's columns in operations.def are the caller's, and as what.
    struct Row {
        const char *name;
        bool has_slope;
    };
    constexpr Row rows[] = {
#define HBN_ACTIVATION(name, c_name, compiled, forward, backward, slope, low, high) \
    {#name, #slope == std::string_view("alpha")},
#include "runtime/operations.def"
    };
    if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) != 4 ||
        !PyUnicode_Check(PyTuple_GET_ITEM(given, 0))) {
        raise(PyExc_TypeError, "%s must be a str", name);
    }
    const char *const named = PyUnicode_AsUTF8(PyTuple_GET_ITEM(given, 0));
    if (!named) {
        throw nb::python_error();
    }
    hbn_activation result;
    raise_on_error(hbn_activation_named(named, &result.kind));
    const Row *const row = std::find_if(std::begin(rows), std::end(rows), [&](const Row &r) {
        return r.name == std::string_view(named);
    });
    result.alpha = row->has_slope ? number(PyTuple_GET_ITEM(given, 1), "negative_slope")
                                  : number(PyTuple_GET_ITEM(given, 2), "min_val");
    result.beta = number(PyTuple_GET_ITEM(given, 3), "max_val");
    return result;
}

const char *name_of(Arg arg) {
    return internal::row(arg).name;
}

// A few of them, next to one another: most calls lend less than half of what an operation may be given.
class Lents {
public:
    Lents() {
    }
    ~Lents() {
        while (size_ > 0) {
            at(--size_)->~Lent();
        }
    }
    Lents(const Lents &) = delete;
    Lents &operator=(const Lents &) = delete;

    Lent &add(nb::handle array, const char *name, Access access, Holds holds) {
        Lent *const lent = new (at(size_)) Lent(array, name, access, holds);
        size_++;
        return *lent;
    }

    const Lent *begin() const {
        return reinterpret_cast<const Lent *>(memory_);
    }
    const Lent *end() const {
        return begin() + size_;
    }

private:
    Lent *at(int i) {
        return reinterpret_cast<Lent *>(memory_) + i;
    }

    alignas(Lent) char memory_[kMostUses * sizeof(Lent)];
    int size_ = 0;
};

// What an operation's arguments lend, in its row's order, for as long as this lives.
class Arguments {
public:
    Arguments(const OperationRow &row, PyObject *const *given) : row_(row) {
        for (int i = 0; i < row.size; i++) {
            const Use &use = row.uses[i];
            switch (internal::role(use.arg)) {
            case Role::tensor:
            case Role::mask:
                values_[i] = Given(static_cast<const hbn_tensor *>(nullptr));
                if (given[i] != Py_None) {
                    Lent &lent = lend(i, given);
                    tensors_[num_tensors_++] = &lent;
                    values_[i] = Given(lent.tensor());
                }
                break;
            case Role::parameter:
            case Role::statistic:
                if (use.arg == Arg::mean && i + 1 < row.size &&
                    row.uses[i + 1].arg == Arg::invstd) {
                    lend_statistics(i, given);
                    i++;
                } else {
                    values_[i] = vector(i, given);
                }
                break;
            case Role::activation:
                activation_ = activation(given[i], name_of(use.arg));
                values_[i] = Given(&activation_);
                break;
            case Role::number:
                values_[i] = Given(number(given[i], name_of(use.arg)));
                break;
            case Role::view:
                break;  // of kernels alone
            }
        }
        Lent::fold(tensors_, num_tensors_);
    }

    // Raises ValueError where autograd would want to record the call.
    void check_not_recorded() const {
        for (const Lent &lent : lents_) {
            if (lent.is_torch_tensor()) {
                if (!is_grad_enabled()) {
                    return;
                }
                break;
            }
        }
        for (const Lent &lent : lents_) {
            lent.check_requires_no_grad();
        }
    }

    // Tells autograd which tensors now have other values, so that a backward that has saved one raises an error. Outputs are
    // left out: they are new, or the user's `out`, of which our callers tell it. `counted`: another such tensor, or null.
    void increment_versions(PyObject *counted) const {
        nb::object updated;
        const auto add = [&](PyObject *tensor) {
            if (tensor) {
                updated = updated.is_valid() ? updated : nb::list();
                nb::borrow<nb::list>(updated).append(nb::handle(tensor));
            }
        };
        const int momentum = row_.use_of[int(Arg::momentum)] - 1;
        if (momentum < 0 || values_[momentum].number != 0) {
            for (const Lent &lent : lents_) {
                add(lent.updated_torch_tensor());
            }
        }
        add(counted);
        if (updated.is_valid()) {
            increment_version(updated);
        }
    }

    const Given *values() const {
        return values_;
    }

private:
    Lent &lend(int i, PyObject *const *given) {
        const Use &use = row_.uses[i];
        const Holds holds = internal::role(use.arg) == Role::mask ? Holds::mask : Holds::values;
        return lents_.add(given[i], name_of(use.arg), access(use, given), holds);
    }

    // Only training writes running statistics.
    Access access(const Use &use, PyObject *const *given) const {
        if (use.direction == Direction::in) {
            return Access::read;
        }
        const int training = row_.use_of[int(Arg::training)] - 1;
        if (use.direction == Direction::out) {
            return Access::write;
        }
        const bool writes = training < 0 || number(given[training], name_of(Arg::training)) != 0;
        return writes ? Access::update : Access::read;
    }

    Given vector(int i, PyObject *const *given) {
        return given[i] == Py_None ? absent_vector() : Given(lend(i, given).vector());
    }
    static Given absent_vector() {
        return Given(static_cast<const hbn_vector *>(nullptr));
    }

    // mean and invstd: two vectors, or one (2, C) array of both in place of mean, or neither.
    void lend_statistics(int i, PyObject *const *given) {
        const bool has_mean = given[i] != Py_None, has_invstd = given[i + 1] != Py_None;
        if (has_mean == has_invstd) {
            values_[i] = vector(i, given);
            values_[i + 1] = vector(i + 1, given);
            return;
        }
        Lent *const both = has_mean ? &lend(i, given) : nullptr;
        if (!both || !both->has_two_rows()) {
            raise(PyExc_ValueError, "mean and invstd must either both be None or neither be None");
        }
        values_[i] = Given(both->row(0));
        values_[i + 1] = Given(both->row(1));
    }

    const OperationRow &row_;
    Lents lents_;
    Lent *tensors_[kMostUses];
    int num_tensors_ = 0;
    hbn_activation activation_;
    Given values_[kMostUses];
};

// ---- functions

void check_size(const char *function, Py_ssize_t size, Py_ssize_t wanted) {
    if (size != wanted) {
        raise(PyExc_TypeError, "%s() takes %zd arguments (%zd given)", function, wanted, size);
    }
}

enum class Autograd { may_record, does_not_record };

// `counted`: a tensor of PyTorch that the caller writes if this succeeds, or null.
void run(Operation operation, PyObject *const *given, Autograd autograd,
         PyObject *counted = nullptr) {
    const Arguments arguments(internal::row(operation), given);
    if (autograd == Autograd::may_record) {
        arguments.check_not_recorded();
    }
    hbn_status status;
    {
        const nb::gil_scoped_release released;
        status = internal::run(operation, arguments.values());
    }
    raise_on_error(status);
    arguments.increment_versions(counted);
}

// What Python calls: None, or the exception that `body` threw.
template<typename Body>
PyObject *none_or_error(Body body) noexcept {
    try {
        body();
        Py_RETURN_NONE;
    } catch (nb::python_error &e) {
        e.restore();
    } catch (const std::bad_alloc &) {
        PyErr_NoMemory();
    } catch (const std::exception &e) {
        PyErr_SetString(PyExc_RuntimeError, e.what());
    }
    return nullptr;
}

template<Operation operation>
PyObject *run_operation(PyObject *, PyObject *const *given, Py_ssize_t size) {
    return none_or_error([&] {
        constexpr const OperationRow &row = internal::row(operation);
        check_size(row.name, size, row.size);
        run(operation, given, Autograd::may_record);
    });
}

// num_batches_tracked: one int64, or a tensor of PyTorch of any other shape and dtype that PyTorch can count with.
class Counter {
public:
    explicit Counter(nb::handle given) : given_(given) {
        try {
            memory_ = lent_.emplace(given, name_, Access::update, Holds::counter).counter();
        } catch (nb::python_error &e) {
            if (!e.matches(PyExc_Exception) || e.matches(PyExc_MemoryError) ||
                !nb::hasattr(given, "copy_")) {
                throw;
            }
            if (requires_grad(given) && is_grad_enabled()) {
                raise(PyExc_ValueError, "%s requires grad", name_);
            }
            next_ = given + nb::int_(1);
            if (!next_.attr("dtype").equal(given.attr("dtype"))) {
                const std::string dtype = nb::str(nb::object(given.attr("dtype"))).c_str();
                raise(PyExc_TypeError, "%s of %s can't count", name_, dtype.c_str());
            }
        }
    }

    double next() const {
        return memory_ ? double(*memory_) + 1 : double(nb::float_(next_));
    }
    // The tensor of PyTorch that increment() writes without PyTorch; null for any other array.
    PyObject *written_torch_tensor() const {
        return memory_ ? lent_->updated_torch_tensor() : nullptr;
    }
    void increment() {
        if (memory_) {
            *memory_ = int64_t(uint64_t(*memory_) + 1);
        } else {
            given_.attr("copy_")(next_);
        }
    }

private:
    static constexpr const char *name_ = "num_batches_tracked";

    nb::handle given_;
    std::optional<Lent> lent_;
    int64_t *memory_ = nullptr;
    nb::object next_;  // in place of memory_
};

// forward, with num_batches_tracked after its arguments: None, or what is counted up and by which a momentum of None is
// the cumulative average's. For hbn.torch, which knows what autograd records.
PyObject *forward_and_count(PyObject *, PyObject *const *given, Py_ssize_t size) {
    return none_or_error([&] {
        constexpr const OperationRow &row = internal::row(Operation::forward);
        constexpr int momentum = row.use_of[int(Arg::momentum)] - 1;
        check_size("forward_and_count", size, row.size + 1);
        if (given[row.size] == Py_None) {
            if (given[momentum] == Py_None) {
                raise(PyExc_ValueError,
                      "momentum may be None only where num_batches_tracked is given");
            }
            run(Operation::forward, given, Autograd::does_not_record);
            return;
        }
        Counter counter(given[row.size]);
        if (given[momentum] == Py_None) {
            PyObject *with_momentum[kMostUses];
            std::copy(given, given + row.size, with_momentum);
            if (counter.next() == 0) {
                raise(PyExc_ZeroDivisionError,
                      "num_batches_tracked counts to 0, of which there is no average");
            }
            const nb::float_ average(1 / counter.next());
            with_momentum[momentum] = average.ptr();
            run(Operation::forward, with_momentum, Autograd::does_not_record,
                counter.written_torch_tensor());
        } else {
            run(Operation::forward, given, Autograd::does_not_record,
                counter.written_torch_tensor());
        }
        // After the call, so that one that fails has changed nothing.
        counter.increment();
    });
}

// A copy, in NumPy's float64 vector `copy`, of a vector of the same size, whoever lends it.
void copy_statistic(nb::handle array, const std::string &name, nb::handle copy) {
    Lent from(array, name.c_str(), Access::read), to(copy, "copy", Access::write);
    if (from.is_torch_tensor() && is_grad_enabled()) {
        from.check_requires_no_grad();
    }
    const hbn_vector *const a = from.vector(), *const b = to.vector();
    if (a->dtype != HBN_FLOAT64) {
        raise(PyExc_ValueError, "mixed dtype: expected %s to be float64, got %s", name.c_str(),
              internal::dtype_name(a->dtype));
    }
    if (a->device != HBN_CPU) {
        raise(PyExc_ValueError, "%s should be in the memory of the CPU, not of device '%s'",
              name.c_str(), internal::device_name(a->device));
    }
    for (int64_t i = 0; i < std::min(a->size, b->size); i++) {
        std::memcpy(static_cast<double *>(b->data) + i,
                    static_cast<const double *>(a->data) + i * a->stride, sizeof(double));
    }
}

// ---- the table, as Python sees it

// Each operation's arguments, as operations.def has them: (name, role, direction, presence).
nb::dict operations() {
    constexpr const char *roles[] = {
#define HBN_ARGUMENT(role, name, ...) #role,
#include "runtime/operations.def"
        "",  // of Arg::none
    };
    nb::dict all;
    nb::list arguments;
    const auto add = [&](Arg arg, const char *direction, const char *presence) {
        arguments.append(nb::make_tuple(name_of(arg), roles[int(arg)], direction, presence));
    };
#define HBN_OPERATION(name) all[#name] = arguments = nb::list();
#define HBN_IN(name, presence) add(Arg::name, "in", #presence);
#define HBN_INOUT(name, presence) add(Arg::name, "inout", #presence);
#define HBN_OUT(name, presence, in_place_of, unless) add(Arg::name, "out", #presence);
#include "runtime/operations.def"
    return all;
}

nb::list activations() {
    nb::list all;
#define HBN_ACTIVATION(name, ...) all.append(#name);
#include "runtime/operations.def"
    return all;
}

PyCFunction as_method(PyObject *(*function)(PyObject *, PyObject *const *, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

// The docstring from which inspect takes a function's signature.
std::string signature(const char *name, const OperationRow &row, const char *last) {
    std::string text = std::string(name) + "(";
    for (const Use &use : row) {
        text += std::string(name_of(use.arg)) + ", ";
    }
    return text + last + "/)\n--\n\n";
}

void add_operations(nb::module_ &m) {
    static PyMethodDef methods[] = {
#define HBN_OPERATION(name) \
    {#name, as_method(run_operation<Operation::name>), METH_FASTCALL, nullptr},
#include "runtime/operations.def"
        {"forward_and_count", as_method(forward_and_count), METH_FASTCALL, nullptr},
        {nullptr, nullptr, 0, nullptr},
    };
    static std::string signatures[internal::kOperations + 1];
    for (int i = 0; i < internal::kOperations; i++) {
        const OperationRow &row = internal::row(Operation(i));
        signatures[i] = signature(row.name, row, "");
    }
    signatures[internal::kOperations] =
        signature("forward_and_count", internal::row(Operation::forward), "num_batches_tracked, ");
    for (int i = 0; i <= internal::kOperations; i++) {
        methods[i].ml_doc = signatures[i].c_str();
    }
    if (PyModule_AddFunctions(m.ptr(), methods) != 0) {
        throw nb::python_error();
    }
}

void set_num_threads(int num_threads) {
    raise_on_error(hbn_set_num_threads(num_threads));
}

void set_instruction_set(const std::string &name) {
    raise_on_error(hbn_set_instruction_set(name.c_str()));
}

NB_MODULE(_core, m) {
    using namespace nb::literals;
    add_operations(m);
    m.attr("operations") = operations();
    m.attr("activations") = activations();
    m.def(
        "describe",
        [](nb::handle array, const std::string &name) {
            return Lent(array, name.c_str(), Access::read).described();
        },
        "array"_a.none(), "name"_a,
        "What an array lends: its shape, its strides in elements and its dtype's name.");
    m.def("copy_statistic", &copy_statistic, "array"_a, "name"_a, "copy"_a);
    m.def("set_num_threads", &set_num_threads, "num_threads"_a);
    m.def("get_num_threads", &hbn_get_num_threads, "Threads that later calls use.");
    m.def(
        "instruction_sets", [] { return std::string(hbn_instruction_sets()); },
        "Those that this library has kernels for, best first, comma-separated.");
    m.def(
        "instruction_set", [] { return std::string(hbn_instruction_set()); },
        "The one in use: this processor's best, or what the variable HBN_INSTRUCTION_SET names.");
    m.def("set_instruction_set", &set_instruction_set, "name"_a,
          "Has later calls use one of instruction_sets(). ValueError for any other name, "
          "NotImplementedError for one that this processor lacks.");
    m.def("version", [] { return std::string(hbn_version()); });
}

}  // namespace
}  // namespace hbn::python
