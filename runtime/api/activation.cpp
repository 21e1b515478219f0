#include <hbn/activation.h>

#include "runtime/checks.h"

#include <cstring>

namespace hbn {

namespace {

struct Row {
    hbn_activation_kind kind;
    const char *name;
    const char *formulas;  // of the kernels' numbers, in the caller's alpha and beta

    bool has(const char *parameter) const {
        return std::strstr(formulas, parameter) != nullptr;
    }
};

const Row rows[] = {
#define HBN_ACTIVATION(name, c_name, compiled, forward, backward, slope, low, high) \
    {c_name, #name, #slope " " #low " " #high},
#include "runtime/operations.def"
};

}  // namespace

std::string Activation::repr() const {
    for (const Row &row : rows) {
        if (row.kind == kind) {
            char first[32], second[32];
            std::string parameters = row.has("alpha") ? internal::spell(alpha, first) : "";
            if (row.has("beta")) {
                parameters += std::string(", ") + internal::spell(beta, second);
            }
            return row.name + ("(" + parameters) + ")";
        }
    }
    return "activation " + std::to_string(int(kind)) + ", which this library does not know";
}

}  // namespace hbn
