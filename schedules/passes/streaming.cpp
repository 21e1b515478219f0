#include "schedules/passes/streaming.h"

#include <set>
#include <vector>

namespace hbn {

using namespace Halide;
using namespace Halide::Internal;

namespace {

// Halide 21 has no streaming stores, no way to link LLVM code into a kernel, and marks no store
// !nontemporal. But LLVM's AutoUpgrade (UpgradeIntrinsicCall) turns every call whose callee's name begins
// "llvm.x86.avx.movnt.", as AVX's former intrinsics did, into `store <2nd argument>, ptr <1st>, align <its
// size>, !nontemporal` whenever it reads bitcode, and Halide writes and reads back the optimized module
// before it emits code (clone_module). So a call to that name is all it takes, inlined by construction. Were
// either to change, the name would remain undefined and linking would fail.
constexpr const char *nontemporal_store = "llvm.x86.avx.movnt.hbn";

// What one call stores. Halide declares callees with scalar parameters, and 128 bits are its widest scalar;
// LLVM sees through the conversion and stores an xmm register. Write combining makes whole lines of these;
// on one thread a ymm a store would be a tenth faster.
constexpr int chunk_bits = 128;

// Loads that are the same in every iteration of a loop, to be done before it: LLVM cannot, since it knows
// nothing of what streaming stores may overwrite.
class HoistLoads : public IRMutator {
public:
    using IRMutator::mutate;

    Stmt hoist(const For *loop) {
        const ScopedBinding<void> inside(inside_, loop->name);
        Stmt result = For::make(loop->name, loop->min, loop->extent, loop->for_type,
                                loop->partition_policy, loop->device_api, mutate(loop->body));
        for (auto load = hoisted_.rbegin(); load != hoisted_.rend(); ++load) {
            result = LetStmt::make(load->first, load->second, result);
        }
        return result;
    }

protected:
    using IRMutator::visit;

    Expr visit(const Load *op) override {
        if (conditional_ || !is_const_one(op->predicate) || expr_uses_vars(op, inside_)) {
            return IRMutator::visit(op);
        }
        for (const auto &[name, load] : hoisted_) {
            if (equal(load, op)) {
                return Variable::make(op->type, name);
            }
        }
        hoisted_.emplace_back(unique_name('t'), op);
        return Variable::make(op->type, hoisted_.back().first);
    }

    // What is loaded under a condition may not exist otherwise.
    Stmt visit(const IfThenElse *op) override {
        conditional_++;
        Stmt result = IRMutator::visit(op);
        conditional_--;
        return result;
    }

    Stmt visit(const LetStmt *op) override {
        return visit_let<LetStmt>(op);
    }
    Expr visit(const Let *op) override {
        return visit_let<Let>(op);
    }
    Stmt visit(const For *op) override {
        const ScopedBinding<void> inside(inside_, op->name);
        return IRMutator::visit(op);
    }

private:
    template<typename LetOrLetStmt>
    auto visit_let(const LetOrLetStmt *op) -> decltype(op->body) {
        const Expr value = mutate(op->value);
        if (!conditional_ && !expr_uses_vars(value, inside_)) {
            hoisted_.emplace_back(op->name, value);
            return mutate(op->body);
        }
        const ScopedBinding<void> inside(inside_, op->name);
        return LetOrLetStmt::make(op->name, value, mutate(op->body));
    }

    Scope<> inside_;
    int conditional_ = 0;
    std::vector<std::pair<std::string, Expr>> hoisted_;
};

class StreamStores : public IRMutator {
public:
    // `outputs` are buffers: a Tuple has several.
    StreamStores(std::set<std::string> outputs, Expr stream)
        : outputs_(std::move(outputs)), stream_(std::move(stream)) {
    }

    using IRMutator::mutate;

    // Halide calls this with the whole pipeline, the visitors with its parts.
    Stmt mutate(const Stmt &s) override {
        if (inside_) {
            return IRMutator::mutate(s);
        }
        inside_ = true;
        replaced_any_ = false;
        Stmt result = with_fence(s);
        inside_ = false;
        _halide_user_assert(replaced_any_)
            << "No loop stores dense vectors to " << *outputs_.begin() << "\n";
        return result;
    }

protected:
    using IRMutator::visit;

    // Where an output's pointer becomes known. As an integer, since only that has arithmetic.
    Stmt visit(const LetStmt *op) override {
        if (!outputs_.count(op->name)) {
            return IRMutator::visit(op);
        }
        Expr pointer = Variable::make(Handle(), op->name);
        return LetStmt::make(
            op->name, op->value,
            LetStmt::make(address_of(op->name), reinterpret(UInt(64), pointer), mutate(op->body)));
    }

    // A loop with such stores becomes two, and the choice between them is made outside of it.
    Stmt visit(const For *op) override {
        const bool outer_in_loop = in_loop_, outer_choice = choice_wanted_;
        choice_wanted_ = false;
        Stmt result;
        if (op->for_type == ForType::Parallel) {
            // Its threads fence when they have done their share of it.
            const bool outer_fence = fence_wanted_;
            in_loop_ = false;
            result = IRMutator::visit(op);
            fence_wanted_ = outer_fence;
        } else {
            in_loop_ = true;
            result = IRMutator::visit(op);
        }
        if (choice_wanted_) {
            result = HoistLoads().hoist(result.as<For>());
            result = IfThenElse::make(stream_, result, Stmt(op));
        }
        in_loop_ = outer_in_loop;
        choice_wanted_ = outer_choice;
        return result;
    }

    Stmt visit(const Store *op) override {
        if (!streamable(op)) {
            return IRMutator::visit(op);
        }
        Streamed streamed;
        stream(op, &streamed);
        replaced_any_ = choice_wanted_ = fence_wanted_ = true;
        return streamed.all();
    }

    // Unrolled stores, or a Tuple's. Values come before the first store, since LLVM knows nothing of what
    // these stores may overwrite, and would load and compute again for each what they have in common.
    Stmt visit(const Block *op) override {
        Streamed streamed;
        if (!collect(op, &streamed) || !streamed.any) {
            return IRMutator::visit(op);
        }
        replaced_any_ = choice_wanted_ = fence_wanted_ = true;
        return streamed.all();
    }

private:
    // Lets, the outermost first, and the stores that use them.
    struct Streamed {
        std::vector<std::pair<std::string, Expr>> lets;
        std::vector<Stmt> stores;
        bool any = false;  // streams

        void keep(const Store *op) {
            const std::string value_name = unique_name('t');
            lets.emplace_back(value_name, op->value);
            stores.push_back(Store::make(op->name, Variable::make(op->value.type(), value_name),
                                         op->index, op->param, op->predicate, op->alignment));
        }

        Stmt all() const {
            Stmt s = Block::make(stores);
            for (auto let = lets.rbegin(); let != lets.rend(); ++let) {
                s = LetStmt::make(let->first, let->second, s);
            }
            return s;
        }
    };

    // Whether `s` is nothing but dense stores and what they use, which then is in `streamed`.
    bool collect(const Stmt &s, Streamed *streamed) {
        if (const Block *block = s.as<Block>()) {
            return collect(block->first, streamed) && collect(block->rest, streamed);
        }
        if (const LetStmt *let = s.as<LetStmt>()) {
            streamed->lets.emplace_back(let->name, let->value);
            return collect(let->body, streamed);
        }
        const Store *store = s.as<Store>();
        if (!store || !is_const_one(store->predicate)) {
            return false;
        }
        if (streamable(store)) {
            stream(store, streamed);
        } else {
            streamed->keep(store);
        }
        return true;
    }

    // Guarded tails are predicated or scalar and stay as they are; so does what runs once a task.
    bool streamable(const Store *op) const {
        const Ramp *ramp = op->index.as<Ramp>();
        return outputs_.count(op->name) && in_loop_ && ramp && is_const_one(ramp->stride) &&
               is_const_one(op->predicate) &&
               op->value.type().lanes() % (chunk_bits / op->value.type().bits()) == 0;
    }

    void stream(const Store *op, Streamed *streamed) {
        streamed->any = true;
        const Ramp *ramp = op->index.as<Ramp>();
        const Type type = op->value.type();
        const int lanes = chunk_bits / type.bits();

        // A constant summand is kept out of the conversion to 64 bits, which lets unrolled stores share it.
        Expr index = ramp->base;
        int64_t constant = 0;
        if (const Add *add = index.as<Add>()) {
            if (const auto c = as_const_int(add->b)) {
                index = add->a;
                constant = *c;
            }
        }
        const Expr element = cast<uint64_t>(cast<int64_t>(index)) + Expr(uint64_t(constant));
        const std::string value_name = unique_name('t'), begin_name = unique_name('t');
        const Expr value = Variable::make(type, value_name),
                   begin = Variable::make(UInt(64), begin_name);
        const Expr first_address =
            Variable::make(UInt(64), address_of(op->name)) + element * Expr(uint64_t(type.bytes()));
        streamed->lets.emplace_back(value_name, op->value);
        streamed->lets.emplace_back(begin_name, first_address);
        for (int first = 0; first < type.lanes(); first += lanes) {
            const Expr chunk =
                type.lanes() == lanes ? value : Shuffle::make_slice(value, first, 1, lanes);
            const Expr address = begin + Expr(uint64_t(first * type.bytes()));
            streamed->stores.push_back(
                call(nontemporal_store,
                     {reinterpret(Handle(), address), reinterpret(UInt(chunk_bits), chunk)}));
        }
    }

    static std::string address_of(const std::string &output) {
        return output + ".address";
    }

    static Stmt call(const std::string &name, const std::vector<Expr> &arguments) {
        return Evaluate::make(Call::make(Int(32), name, arguments, Call::Extern));
    }

    // Other threads see streaming stores in order only after a fence.
    Stmt with_fence(const Stmt &s) {
        const bool outer = fence_wanted_;
        fence_wanted_ = false;
        Stmt result = IRMutator::mutate(s);
        if (fence_wanted_) {
            result = Block::make(result, IfThenElse::make(stream_, call("hbn_stream_fence", {})));
        }
        fence_wanted_ = outer;
        return result;
    }

    const std::set<std::string> outputs_;
    const Expr stream_;
    bool inside_ = false, in_loop_ = false, replaced_any_ = false;
    bool choice_wanted_ = false, fence_wanted_ = false;
};

}  // namespace

void stream_stores(Pipeline pipeline, const Target &target, const Func &output, const Type &type,
                   const Expr &stream) {
    if (target.arch != Target::X86 || target.has_gpu_feature()) {
        return;
    }
    std::set<std::string> outputs;
    for (int i = 0; i < output.outputs(); i++) {
        if (output.types()[i] == type) {
            outputs.insert(output.outputs() == 1 ? output.name()
                                                 : output.name() + "." + std::to_string(i));
        }
    }
    pipeline.add_custom_lowering_pass(new StreamStores(outputs, stream));
}

}  // namespace hbn
