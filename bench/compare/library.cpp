#include "bench/compare/library.h"

#include <dlfcn.h>

#include <stdexcept>

namespace hbn::compare {

namespace {

using Text = const char *(*)();

Text text_function(void *library, const char *name) {
    void *address = dlsym(library, name);
    if (!address) {
        throw std::runtime_error(std::string("there is no ") + name);
    }
    return reinterpret_cast<Text>(address);
}

}  // namespace

Library::Library(const std::string &path) : Library(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
}

Library Library::of_this_program() {
    return Library(dlopen(nullptr, RTLD_NOW));
}

Library::Library(void *library) {
    if (!library) {
        throw std::runtime_error(dlerror());
    }
    last_error_ = text_function(library, "hbn_last_error");
    version_ = text_function(library, "hbn_version");
    instruction_set_ = text_function(library, "hbn_instruction_set");

    set_num_threads = dlsym(library, "hbn_set_num_threads");
    get_num_threads = dlsym(library, "hbn_get_num_threads");
    forward = dlsym(library, "hbn_batch_norm_forward");
    backward = dlsym(library, "hbn_batch_norm_backward");
    jvp = dlsym(library, "hbn_batch_norm_jvp");
    double_backward = dlsym(library, "hbn_batch_norm_double_backward");
    stats = dlsym(library, "hbn_batch_norm_stats");
    merge_moments = dlsym(library, "hbn_merge_moments");
    finalize_moments = dlsym(library, "hbn_finalize_moments");
    normalize = dlsym(library, "hbn_batch_norm_normalize");
    backward_reduce = dlsym(library, "hbn_batch_norm_backward_reduce");
    backward_elemt = dlsym(library, "hbn_batch_norm_backward_elemt");
    relu_forward = dlsym(library, "hbn_batch_norm_relu_forward");
    relu_backward = dlsym(library, "hbn_batch_norm_relu_backward");
    add_relu_forward = dlsym(library, "hbn_batch_norm_add_relu_forward");
    add_relu_backward = dlsym(library, "hbn_batch_norm_add_relu_backward");
    activation_forward = dlsym(library, "hbn_batch_norm_activation_forward");
    activation_backward = dlsym(library, "hbn_batch_norm_activation_backward");
}

std::string Library::last_error() const {
    return last_error_();
}

std::string Library::description() const {
    return std::string(version_()) + ", " + instruction_set_();
}

}  // namespace hbn::compare
