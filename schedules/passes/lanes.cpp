#include "schedules/passes/lanes.h"

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace hbn {

using namespace Halide;
using namespace Halide::Internal;

namespace {

// Some lanes of vectors: from `first`, every `step`th, so many. All of them are lanes that are in use, so that
// loads need no predicate. ok() is false after an expression that it does not know.
class Lanes : public IRMutator {
public:
    Lanes(const Expr &first, int step, int count) : first_(first), step_(step), count_(count) {
    }

    using IRMutator::mutate;

    Expr mutate(const Expr &e) override {
        return e.type().is_scalar() ? e : IRMutator::mutate(e);
    }

    bool ok() const {
        return ok_;
    }

protected:
    using IRMutator::visit;

    Expr visit(const Ramp *op) override {
        const Expr base = simplify(op->base + op->stride * cast(op->base.type(), first_));
        return count_ == 1 ? base : Ramp::make(base, simplify(op->stride * step_), count_);
    }
    Expr visit(const Broadcast *op) override {
        ok_ = ok_ && op->value.type().is_scalar();
        return count_ == 1 ? op->value : Broadcast::make(op->value, count_);
    }
    Expr visit(const Load *op) override {
        return Load::make(op->type.with_lanes(count_), op->name, mutate(op->index), op->image,
                          op->param, const_true(count_), ModulusRemainder());
    }
    Expr visit(const Cast *op) override {
        return Cast::make(op->type.with_lanes(count_), mutate(op->value));
    }
    Expr visit(const Reinterpret *op) override {
        ok_ = ok_ && op->type.lanes() == op->value.type().lanes();
        return Reinterpret::make(op->type.with_lanes(count_), mutate(op->value));
    }
    Expr visit(const Call *op) override {
        ok_ = ok_ && op->is_pure();
        std::vector<Expr> arguments;
        for (const Expr &argument : op->args) {
            arguments.push_back(mutate(argument));
        }
        return Call::make(op->type.with_lanes(count_), op->name, arguments, op->call_type);
    }
    Expr visit(const Variable *op) override {
        return unknown(op);
    }
    Expr visit(const Let *op) override {
        return unknown(op);
    }
    // Of two vectors in turn, as Halide has paired coefficients. first is even, unless it is the only one.
    Expr visit(const Shuffle *op) override {
        if (!op->is_interleave() || op->vectors.size() != 2 || step_ != 1) {
            return unknown(op);
        }
        Lanes half(simplify(first_ / 2), 1, std::max(count_ / 2, 1));
        const Expr even = half.mutate(op->vectors[0]), odd = half.mutate(op->vectors[1]);
        ok_ = ok_ && half.ok();
        return count_ == 1 ? select(first_ % 2 == 0, even, odd)
                           : Shuffle::make_interleave({even, odd});
    }
    Expr visit(const VectorReduce *op) override {
        return unknown(op);
    }

    Expr unknown(const Expr &e) {
        ok_ = false;
        return make_zero(e.type().with_lanes(count_));
    }

    const Expr first_;
    const int step_, count_;
    bool ok_ = true;
};

// Even or odd lanes, where bfloat16 comes from halves of words. The upper half of a float32 is that bfloat16.
class HalvesOfWords : public Lanes {
public:
    HalvesOfWords(int lanes, bool odd) : Lanes(odd ? 1 : 0, 2, lanes / 2), odd_(odd) {
    }
    // What is to be added to sums, of which there are few beside the elements that are added: other vectors are shuffled.
    // `halved`: the buffer, if any, whose first half of lanes is of even lanes, and the second of odd ones.
    HalvesOfWords(int lanes, bool odd, const std::string *halved) : HalvesOfWords(lanes, odd) {
        shuffles_ = true;
        halved_ = halved;
    }

protected:
    using Lanes::visit;

    Expr visit(const Cast *op) override {
        const Load *load = op->value.as<Load>();
        if (op->type.element_of() != Float(32) || !load || load->type.element_of() != BFloat(16)) {
            return Lanes::visit(op);
        }
        if (!is_dense(load)) {
            return unknown(op);
        }
        const Expr words = Reinterpret::make(UInt(32, count_), load);
        return Reinterpret::make(Float(32, count_),
                                 odd_ ? words & upper_half(count_) : words << 16);
    }
    // What Halide made of paired coefficients. Vectors of anything else would have to be shuffled.
    Expr visit(const Shuffle *op) override {
        return op->is_interleave() && op->vectors.size() == 2 ? op->vectors[odd_] : unknown(op);
    }
    Expr visit(const Load *op) override {
        if (op->type.element_of() == UInt(8) && is_dense(op)) {
            const Expr pairs = Reinterpret::make(UInt(16, count_), op);
            return Cast::make(UInt(8, count_), odd_ ? pairs >> 8 : pairs);
        }
        if (shuffles_ && is_dense(op)) {
            const Ramp *all = op->index.as<Ramp>();
            if (!halved_ || op->name != *halved_) {
                return Shuffle::make_slice(op, odd_, 2, count_);
            }
            const Expr base = all->base + (odd_ ? cast(all->base.type(), count_) : 0);
            return Load::make(op->type.with_lanes(count_), op->name,
                              Ramp::make(base, all->stride, count_), op->image, op->param,
                              const_true(count_), ModulusRemainder());
        }
        const Expr index = simplify(mutate(op->index));
        const Ramp *ramp = index.as<Ramp>();
        if (!ramp || !is_const_one(ramp->stride) || !is_const_one(op->predicate)) {
            return unknown(op);
        }
        return Load::make(op->type.with_lanes(count_), op->name, index, op->image, op->param,
                          const_true(count_), ModulusRemainder());
    }

public:
    static Expr upper_half(int lanes) {
        return Broadcast::make(Expr(uint32_t(0xffff0000)), lanes);
    }

private:
    static bool is_dense(const Load *op) {
        const Ramp *index = op->index.as<Ramp>();
        return index && is_const_one(index->stride) && is_const_one(op->predicate);
    }

    const bool odd_;
    bool shuffles_ = false;
    const std::string *halved_ = nullptr;
};

// Statements that consist of vectors' names and one store, as the store alone.
class MutateStores : public IRMutator {
protected:
    using IRMutator::visit;

    // A statement to take the store's place, or an undefined one.
    virtual Stmt replace(const Store *op) = 0;

    Stmt visit(const LetStmt *op) override {
        if (op->value.type().is_scalar()) {
            return IRMutator::visit(op);
        }
        lets_.emplace_back(op->name, op->value);
        const Stmt body = mutate(op->body);
        lets_.pop_back();
        // Still needed, unless all of the body was replaced: then nothing uses the name.
        return body.same_as(op->body)          ? Stmt(op)
               : stmt_uses_var(body, op->name) ? LetStmt::make(op->name, op->value, body)
                                               : body;
    }

    Stmt visit(const Store *op) override {
        if (op->value.type().is_scalar()) {
            return op;
        }
        const Stmt whole = Store::make(op->name, without_names(op->value), without_names(op->index),
                                       op->param, without_names(op->predicate), op->alignment);
        const Stmt replaced = replace(whole.as<Store>());
        return replaced.defined() ? common_subexpression_elimination(replaced) : Stmt(op);
    }

private:
    Expr without_names(Expr e) const {
        for (auto let = lets_.rbegin(); let != lets_.rend(); ++let) {
            e = substitute(let->first, let->second, e);
        }
        return substitute_in_all_lets(e);
    }

    std::vector<std::pair<std::string, Expr>> lets_;
};

class LoadsBFloat16 : public IRVisitor {
public:
    static bool in(const Expr &e) {
        LoadsBFloat16 search;
        e.accept(&search);
        return search.found_;
    }

protected:
    using IRVisitor::visit;

    void visit(const Load *op) override {
        found_ = found_ || op->type.element_of() == BFloat(16);
        IRVisitor::visit(op);
    }

private:
    bool found_ = false;
};

class PairBFloat16 : public MutateStores {
    // Lanes are a power of two.
    static constexpr int least_lanes = 8;

public:
    PairBFloat16(std::set<std::string> lanes_in_any_order, Expr lower_half)
        : lanes_in_any_order_(std::move(lanes_in_any_order)), lower_half_(std::move(lower_half)) {
    }

protected:
    Stmt replace(const Store *op) override {
        const int lanes = op->value.type().lanes();
        const Ramp *index = op->index.as<Ramp>();
        if (lanes < least_lanes || !index || !is_const_one(index->stride) ||
            !is_const_one(op->predicate)) {
            return Stmt();
        }
        if (!op->param.defined()) {
            return op->value.type().element_of() == Float(32) && LoadsBFloat16::in(op->value)
                       ? pair_sums(op)
                       : Stmt();
        }
        return op->value.type().element_of() == UInt(8) ? pair_bytes(op) : pair_bfloat16(op);
    }

private:
    Stmt pair_sums(const Store *op) const {
        const std::string func = op->name.substr(0, op->name.find('.'));
        bool ok = true;
        const Expr value = lanes_in_any_order_.count(func) ? pair(op->value, &op->name, &ok)
                                                           : pair_what_is_loaded(op->value, &ok);
        return ok ? Store::make(op->name, value, op->index, op->param, op->predicate, op->alignment)
                  : Stmt();
    }

    // Sums so far, which lie in memory as they are, plus elements in pairs.
    static Expr pair_what_is_loaded(const Expr &e, bool *ok) {
        if (!LoadsBFloat16::in(e)) {
            return e;
        }
        const Add *sum = e.as<Add>();
        if (sum && (!LoadsBFloat16::in(sum->a) || !LoadsBFloat16::in(sum->b))) {
            return pair_what_is_loaded(sum->a, ok) + pair_what_is_loaded(sum->b, ok);
        }
        return pair(e, nullptr, ok);
    }

    static Expr pair(const Expr &e, const std::string *halved, bool *ok) {
        const int lanes = e.type().lanes();
        HalvesOfWords even(lanes, false, halved), odd(lanes, true, halved);
        const std::vector<Expr> halves = {even.mutate(e), odd.mutate(e)};
        *ok = *ok && even.ok() && odd.ok();
        return halved ? Shuffle::make_concat(halves) : Shuffle::make_interleave(halves);
    }

    // A mask beside the tensor.
    static Stmt pair_bytes(const Store *op) {
        const int lanes = op->value.type().lanes();
        HalvesOfWords even(lanes, false), odd(lanes, true);
        const Type pair = UInt(16, lanes / 2);
        const Expr lower = Cast::make(pair, even.mutate(op->value)),
                   upper = Cast::make(pair, odd.mutate(op->value));
        return even.ok() && odd.ok() ? with_value(op, lower | (upper << 8)) : Stmt();
    }

    Stmt pair_bfloat16(const Store *op) const {
        const int lanes = op->value.type().lanes();
        // The upper halves of words, as round_to_bfloat16() has it.
        const Reinterpret *bits = op->value.as<Reinterpret>();
        const Cast *narrowed = bits ? bits->value.as<Cast>() : nullptr;
        const Call *shifted = narrowed ? narrowed->value.as<Call>() : nullptr;
        if (op->value.type().element_of() != BFloat(16) || !shifted ||
            !shifted->is_intrinsic(Call::shift_right) || shifted->type != UInt(32, lanes) ||
            !can_prove(shifted->args[1] ==
                       Broadcast::make(cast(shifted->args[1].type().element_of(), 16), lanes))) {
            return Stmt();
        }
        HalvesOfWords even(lanes, false), odd(lanes, true);
        const Expr lower = even.mutate(shifted->args[0]), upper = odd.mutate(shifted->args[0]);
        if (!even.ok() || !odd.ok()) {
            return Stmt();
        }
        const Expr low = lower >> 16;
        return with_value(op,
                          lower_half_.defined()
                              ? upper ^ ((upper ^ low) & Broadcast::make(lower_half_, lanes / 2))
                              : low | (upper & HalvesOfWords::upper_half(lanes / 2)));
    }

    static Stmt with_value(const Store *op, const Expr &bits) {
        return Store::make(op->name, Reinterpret::make(op->value.type(), bits), op->index,
                           op->param, op->predicate, op->alignment);
    }

    const std::set<std::string> lanes_in_any_order_;
    const Expr lower_half_;
};

class HalveTails : public MutateStores {
protected:
    Stmt replace(const Store *op) override {
        const int lanes = op->value.type().lanes();
        if (!op->param.defined() || is_const_one(op->predicate) || (lanes & (lanes - 1)) != 0) {
            return Stmt();
        }
        // Predicates are those of GuardWithIf: the first lanes are in use. What was stored so far is a multiple
        // of twice the lanes that come next, and is written as such: pairs stay pairs.
        std::vector<std::pair<std::string, Expr>> multiples;
        std::vector<std::pair<Expr, Stmt>> steps;
        Expr multiple = 0;
        for (int count = lanes / 2; count > 0; count /= 2) {
            if (!add_step(op, multiple * (2 * count), count, &steps)) {
                return Stmt();
            }
            multiples.emplace_back(unique_name("multiple"),
                                   multiple * 2 + select(steps.back().first, 1, 0));
            multiple = Variable::make(Int(32), multiples.back().first);
        }
        // The last one, where all lanes are in use.
        if (!add_step(op, multiple, 1, &steps)) {
            return Stmt();
        }
        Stmt result;
        for (size_t i = steps.size(); i-- > 0;) {
            const Stmt step = IfThenElse::make(steps[i].first, steps[i].second);
            result = result.defined()
                         ? Block::make(
                               step, LetStmt::make(multiples[i].first, multiples[i].second, result))
                         : step;
        }
        return result;
    }

private:
    static bool add_step(const Store *op, const Expr &first, int count,
                         std::vector<std::pair<Expr, Stmt>> *steps) {
        Lanes chosen(first, 1, count), last(first + (count - 1), 1, 1);
        const Expr value = chosen.mutate(op->value), index = chosen.mutate(op->index);
        const Expr in_use = last.mutate(op->predicate);
        steps->emplace_back(in_use, Store::make(op->name, value, index, op->param,
                                                const_true(count), ModulusRemainder()));
        return chosen.ok() && last.ok();
    }
};

}  // namespace

void compute_bfloat16_in_pairs(Pipeline pipeline, const std::set<std::string> &lanes_in_any_order,
                               const Expr &lower_half) {
    pipeline.add_custom_lowering_pass(new PairBFloat16(lanes_in_any_order, lower_half));
}

void store_tails_by_halves(Pipeline pipeline) {
    pipeline.add_custom_lowering_pass(new HalveTails);
}

}  // namespace hbn
