#include "schedules/passes/prefetching.h"

#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace hbn {

using namespace Halide;
using namespace Halide::Internal;

namespace {

// Halide's own prefetch bypasses L2 on x86 (prefetchnta). But its runtime declares the LLVM intrinsic that it
// is made of, and calls find what is declared.
constexpr const char *prefetch_intrinsic = "llvm.prefetch.p0";
constexpr int to_all_caches = 3, for_reading = 0, data_cache = 1;

constexpr int line = 64;
// Rows of no more than this are prefetched a row ahead.
constexpr int64_t short_row_bytes = 16384;

// Names and what they stand for, the outermost first.
using Lets = std::vector<std::pair<std::string, Expr>>;

Expr in_terms_of_outer(const Lets &lets, Expr e) {
    for (auto let = lets.rbegin(); let != lets.rend(); ++let) {
        e = substitute(let->first, let->second, e);
    }
    return e;
}

// The same, as far as it depends on one of `loops`.
Expr in_terms_of_loops(const Lets &lets, const std::vector<std::string> &loops, const Expr &e) {
    Scope<> depends;
    for (const std::string &loop : loops) {
        depends.push(loop);
    }
    Lets needed;
    for (const auto &let : lets) {
        if (expr_uses_vars(let.second, depends)) {
            depends.push(let.first);
            needed.push_back(let);
        }
    }
    return in_terms_of_outer(needed, e);
}

// An index as sums and products of int64, which Halide simplifies better than conversions of int32 ones.
class Widen : public IRMutator {
public:
    static constexpr const char *suffix = ".wide";

    Expr widen(const Expr &e) {
        const Type wide = Int(64);
        if (e.type() == wide) {
            return mutate(e);
        }
        if (const Add *op = e.as<Add>()) {
            return widen(op->a) + widen(op->b);
        }
        if (const Sub *op = e.as<Sub>()) {
            return widen(op->a) - widen(op->b);
        }
        if (const Mul *op = e.as<Mul>()) {
            return widen(op->a) * widen(op->b);
        }
        if (const Variable *op = e.as<Variable>()) {
            return Variable::make(wide, op->name + suffix);
        }
        return cast(wide, e);
    }

protected:
    using IRMutator::visit;

    Expr visit(const Cast *op) override {
        return op->type == Int(64) && op->value.type() == Int(32) ? widen(op->value) : Expr(op);
    }
};

// Back to the variables that there are.
class Narrow : public IRMutator {
protected:
    using IRMutator::visit;

    Expr visit(const Variable *op) override {
        if (!ends_with(op->name, Widen::suffix)) {
            return op;
        }
        const std::string name = op->name.substr(0, op->name.size() - std::strlen(Widen::suffix));
        return cast<int64_t>(Variable::make(Int(32), name));
    }
};

// How much more the index `e` is where the variable `loop` is one more; undefined where that is not simple.
Expr difference(const Expr &e, const std::string &loop) {
    const Expr wide = Widen().widen(e);
    if (expr_uses_var(wide, loop)) {
        return Expr();
    }
    const std::string wide_loop = loop + Widen::suffix;
    const Expr next = substitute(wide_loop, Variable::make(Int(64), wide_loop) + 1, wide);
    return Narrow().mutate(simplify(next - wide));
}

// The dense vectors of callers' buffers that a loop's body reads and writes.
class FindAccesses : public IRVisitor {
public:
    struct Access {
        std::string buffer;
        Type type;
        Expr first;  // its index
    };
    std::vector<Access> loads, stores;
    bool has_loop = false, streams = false;

protected:
    using IRVisitor::visit;

    void visit(const For *) override {
        has_loop = true;
    }
    // What happens under a condition mostly does not.
    void visit(const IfThenElse *op) override {
        conditional_++;
        IRVisitor::visit(op);
        conditional_--;
    }
    void visit(const LetStmt *op) override {
        visit_let(op);
    }
    void visit(const Let *op) override {
        visit_let(op);
    }
    void visit(const Load *op) override {
        IRVisitor::visit(op);
        if (op->param.defined()) {
            add(&loads, op->name, op->type, op->index);
        }
    }
    void visit(const Store *op) override {
        IRVisitor::visit(op);
        if (op->param.defined()) {
            add(&stores, op->name, op->value.type(), op->index);
        }
    }
    void visit(const Call *op) override {
        IRVisitor::visit(op);
        streams = streams || op->name.find(".movnt.") != std::string::npos;
    }

private:
    template<typename LetOrLetStmt>
    void visit_let(const LetOrLetStmt *op) {
        op->value.accept(this);
        lets_.emplace_back(op->name, op->value);
        op->body.accept(this);
        lets_.pop_back();
    }

    void add(std::vector<Access> *accesses, const std::string &buffer, Type type,
             const Expr &index) const {
        const Ramp *ramp = index.as<Ramp>();
        if (conditional_ == 0 && ramp && is_const_one(ramp->stride)) {
            accesses->push_back({buffer, type.element_of(), in_terms_of_outer(lets_, ramp->base)});
        }
    }

    Lets lets_;
    int conditional_ = 0;
};

class Prefetch : public IRMutator {
public:
    explicit Prefetch(const PrefetchParameters &parameters) : parameters_(parameters) {
    }

protected:
    using IRMutator::visit;

    Stmt visit(const LetStmt *op) override {
        lets_.emplace_back(op->name, op->value);
        Stmt result = IRMutator::visit(op);
        lets_.pop_back();
        return result;
    }

    Stmt visit(const For *op) override {
        FindAccesses found;
        op->body.accept(&found);
        if (found.has_loop) {
            std::vector<const For *> outer = around_;
            if (op->for_type == ForType::Serial) {
                around_.push_back(op);
            } else {
                around_.clear();
            }
            Stmt result = IRMutator::visit(op);
            around_ = outer;
            return result;
        }
        if (op->for_type != ForType::Serial ||
            parameters_.not_in.count(op->name.substr(0, op->name.find('.')))) {
            return op;
        }
        Stmt result = op;
        if (found.streams || !found.stores.empty()) {
            result = with_prefetches(result, found.loads, parameters_.inputs);
            result = with_prefetches(result, found.stores, found.streams ? 0 : parameters_.outputs);
        } else {
            result = with_prefetches(result, found.loads, parameters_.sums);
        }
        return result;
    }

private:
    // A loop, in such lets as this has put around it, with one prefetch more for each line accessed.
    Stmt with_prefetches(const Stmt &loop, const std::vector<FindAccesses::Access> &accesses,
                         int bytes) const {
        if (bytes == 0 || accesses.empty()) {
            return loop;
        }
        if (const LetStmt *let = loop.as<LetStmt>()) {
            return LetStmt::make(let->name, let->value,
                                 with_prefetches(let->body, accesses, bytes));
        }
        const For *op = loop.as<For>();
        struct Buffer {
            Expr first;   // of its accesses
            Expr offset;  // to what is prefetched, in elements
            std::set<int64_t> lines;
        };
        std::map<std::string, Buffer> buffers;
        std::vector<Stmt> prefetches;
        Lets around_loop;
        std::vector<std::string> loops = {op->name};
        for (const For *loop : around_) {
            loops.push_back(loop->name);
        }
        for (const auto &access : accesses) {
            const Expr first = in_terms_of_loops(lets_, loops, access.first);
            const Expr step = difference(first, op->name);
            const auto elements = step.defined() ? as_const_int(step) : std::nullopt;
            if (!elements || *elements <= 0) {
                continue;
            }
            const int element_bytes = access.type.bytes();
            Buffer &buffer = buffers[access.buffer];
            if (!buffer.first.defined()) {
                buffer.first = first;
                const Expr row_bytes =
                    cast<int64_t>(op->extent) * Expr(int64_t(*elements * element_bytes));
                const Expr next_row = to_next_row(first);
                const Expr in_row = Expr(int64_t(bytes / element_bytes));
                buffer.offset =
                    define("offset",
                           next_row.defined() && !expr_uses_var(next_row, op->name)
                               ? select(next_row != 0 && row_bytes <= Expr(short_row_bytes),
                                        next_row, in_row)
                               : in_row,
                           &around_loop);
            }
            const auto distance =
                as_const_int(simplify(Widen().widen(first) - Widen().widen(buffer.first)));
            if (!distance || !buffer.lines.insert(*distance * element_bytes / line).second) {
                continue;
            }
            const Expr index = cast<int64_t>(access.first) + buffer.offset;
            const Expr address = reinterpret(UInt(64), Variable::make(Handle(), access.buffer)) +
                                 cast<uint64_t>(index * Expr(int64_t(element_bytes)));
            prefetches.push_back(Evaluate::make(
                Call::make(Int(32), prefetch_intrinsic,
                           {reinterpret(Handle(), address), for_reading, to_all_caches, data_cache},
                           Call::Extern)));
        }
        if (prefetches.empty()) {
            return op;
        }
        prefetches.push_back(op->body);
        return with_lets(around_loop,
                         For::make(op->name, op->min, op->extent, op->for_type,
                                   op->partition_policy, op->device_api, Block::make(prefetches)));
    }

    // How far it is from the index `first` to where the next iteration of the loop around begins, or where it
    // was the last, of the loop around that; 0 where nothing comes next.
    Expr to_next_row(const Expr &first) const {
        Expr distance = Expr(int64_t(0));
        for (const For *loop : around_) {
            const Expr next = difference(first, loop->name);
            if (!next.defined()) {
                return Expr();
            }
            const Expr here = Variable::make(Int(32), loop->name);
            distance = select(here + 1 < loop->min + loop->extent, next,
                              distance - cast<int64_t>(here - loop->min) * next);
        }
        return distance;
    }

    static Expr define(const std::string &prefix, const Expr &value, Lets *lets) {
        lets->emplace_back(unique_name(prefix), value);
        return Variable::make(value.type(), lets->back().first);
    }

    static Stmt with_lets(const Lets &lets, Stmt s) {
        for (auto let = lets.rbegin(); let != lets.rend(); ++let) {
            s = LetStmt::make(let->first, let->second, s);
        }
        return s;
    }

    const PrefetchParameters parameters_;
    Lets lets_;
    std::vector<const For *> around_;  // serial loops, the innermost last
};

}  // namespace

void prefetch_ahead(Pipeline pipeline, const Target &target, const PrefetchParameters &parameters) {
    if (target.arch == Target::X86 && !target.has_gpu_feature()) {
        pipeline.add_custom_lowering_pass(new Prefetch(parameters));
    }
}

}  // namespace hbn
