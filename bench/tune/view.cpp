#include "bench/tune/view.h"

#include <algorithm>
#include <sstream>
#include <vector>

namespace hbn::tune {

using internal::KernelView;

std::string view_of(const KernelCall &call, const compare::Buffers &buffers,
                    const internal::Thresholds &thresholds) {
    const compare::TensorForm &form = buffers.form;
    const hbn_dtype dtype = hbn_dtype(int(form.dtype));
    const std::vector<KernelTensor> kernel_tensors = tensors_of(call.kernel, dtype);
    std::vector<hbn_tensor> tensors(kernel_tensors.size());
    std::vector<const hbn_tensor *> pointers;
    std::bitset<internal::kMostTensors> streamable;
    for (size_t i = 0; i < tensors.size(); i++) {
        const KernelTensor &tensor = kernel_tensors[i];
        const bool is_mask = compare::is_mask(tensor.buffer);
        const compare::Tensor t =
            form.tensor((buffers.*tensor.buffer).data(), is_mask ? compare::UINT8 : form.dtype);
        tensors[i].data = t.data;
        tensors[i].dtype = hbn_dtype(t.dtype);
        tensors[i].ndim = t.ndim;
        std::copy_n(t.sizes, 4, tensors[i].sizes);
        std::copy_n(t.strides, 4, tensors[i].strides);
        streamable[i] = tensor.is_output && !is_mask;
        pointers.push_back(&tensors[i]);
    }
    KernelView view;
    internal::choose_view(pointers.data(), int(pointers.size()), streamable,
                          internal::row(call.kernel).kind == internal::KernelKind::sums,
                          internal::layouts_of(call.kernel, dtype), thresholds, &view);
    int64_t elements = 1;
    for (const int64_t size : form.sizes) {
        elements *= size;
    }
    std::ostringstream json;
    json << "{\"layout\": \"" << internal::kLayoutNames[int(view.layout)] << "\", \"sizes\": [";
    for (int d = 0; d < 4; d++) {
        json << (d > 0 ? ", " : "") << view.dimensions[d].size;
    }
    json << "], \"plane\": " << view.plane << ", \"channels\": " << view.channels
         << ", \"folds\": " << view.folds << ", \"tile\": [" << view.cut.units << ", " << view.cut.h
         << ", " << view.cut.n << "], \"tiles\": [" << view.cut.tiles_w << ", " << view.cut.tiles_h
         << ", " << view.cut.tiles_n << "], \"sample\": [" << view.cut.sample_units << ", "
         << view.cut.sample_h << ", " << view.cut.sample_n
         << "], \"streams\": " << (view.stream ? "true" : "false")
         << ", \"serial\": " << (elements < thresholds.serial_elements ? "true" : "false") << "}";
    return json.str();
}

}  // namespace hbn::tune
