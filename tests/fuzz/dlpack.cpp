#include "fuzz.h"

#include <hbn/functional.h>
#include <hbn/tensor_view.h>

#include <memory>
#include <vector>

namespace hbn::test {

namespace {

// As dlpack.h has them.
enum DLDeviceType : int32_t { kDLCPU = 1 };
struct DLDevice {
    DLDeviceType device_type;
    int32_t device_id;
};
struct DLDataType {
    uint8_t code, bits;
    uint16_t lanes;
};
struct DLTensor {
    void *data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};
struct DLManagedTensor {
    DLTensor dl_tensor;
    void *manager_ctx;
    void (*deleter)(DLManagedTensor *);
};
struct DLManagedTensorVersioned {
    struct {
        uint32_t major, minor;
    } version;
    void *manager_ctx;
    void (*deleter)(DLManagedTensorVersioned *);
    uint64_t flags;
    DLTensor dl_tensor;
};

int64_t any_number(Choices &choices) {
    switch (choices.below(8)) {
    case 0:
        return int64_t(choices.bits64());
    case 1:
        return int64_t(1) << choices.below(63);
    case 2:
        return choices.pick<int64_t>({INT64_MIN, INT64_MAX, -1, 0, INT32_MAX});
    default:
        return choices.between(0, 4);
    }
}

template<typename Void>
void expect_same(Choices &choices, const BasicTensorView<Void> &view, const DLTensor &tensor) {
    HBN_HOLDS(choices, view.ndim == tensor.ndim, "ndim %d", view.ndim);
    HBN_HOLDS(choices,
              uintptr_t(view.data) ==
                  (tensor.data ? uintptr_t(tensor.data) + uintptr_t(tensor.byte_offset) : 0),
              "data");
    for (int d = 0; d < view.ndim && view.ndim <= 4; d++) {
        HBN_HOLDS(choices, view.sizes[size_t(d)] == tensor.shape[d], "sizes");
        HBN_HOLDS(choices, !tensor.strides || view.strides[size_t(d)] == tensor.strides[d],
                  "strides");
    }
    // Whatever it is, an operation can be asked. It reads data only where there is memory for all of it.
    (void)view.num_elements();
    if (view.ndim == 4 && view.data && view.device == Device::cpu && view.sizes[1] < 1000) {
        ConstTensorView refused = view;
        refused.data = nullptr;
        try {
            functional::batch_norm_stats(refused);
            HBN_HOLDS(choices, view.num_elements() == 0, "a tensor without data");
        } catch (const Error &) {
        }
    }
}

}  // namespace

void fuzz_dlpack(Choices &choices) {
    // As long as the tensor says, so that AddressSanitizer sees who reads further.
    const int32_t dimensions = choices.one_in(8) ? int32_t(choices.between(0, 8)) : 4;
    std::vector<int64_t> shape, strides;
    for (int32_t d = 0; d < dimensions; d++) {
        shape.push_back(any_number(choices));
        strides.push_back(any_number(choices));
    }
    shape.shrink_to_fit();
    strides.shrink_to_fit();

    DLTensor tensor{};
    tensor.data =
        choices.one_in(8) ? reinterpret_cast<void *>(uintptr_t(choices.bits64())) : nullptr;
    tensor.data = choices.one_in(2) ? shape.data() : tensor.data;
    const int32_t device = choices.one_in(4) ? int32_t(any_number(choices)) : kDLCPU;
    std::memcpy(&tensor.device.device_type, &device, sizeof device);
    tensor.ndim = dimensions;
    tensor.dtype = {choices.pick<uint8_t>({2, 2, 2, 4, 1, 6, 0, 200}),
                    choices.pick<uint8_t>({32, 32, 64, 16, 8, 0, 255}),
                    choices.pick<uint16_t>({1, 1, 1, 1, 1, 1, 0, 4})};
    tensor.shape = shape.data();
    tensor.strides = choices.one_in(2) ? nullptr : strides.data();
    tensor.byte_offset = choices.one_in(2) ? 0 : uint64_t(any_number(choices));
    if (choices.one_in(16)) {
        // What the number of dimensions says is not true, or there is no shape.
        tensor.ndim = choices.pick<int32_t>({-1, INT32_MIN, INT32_MAX, 5, 4});
        tensor.shape = tensor.ndim == 4 ? nullptr : tensor.shape;
        tensor.strides = nullptr;
    }

    try {
        expect_same(choices, from_dlpack(tensor), tensor);
    } catch (const InvalidArgument &) {
    }
    try {
        const DLManagedTensor managed{tensor, nullptr, nullptr};
        expect_same(choices, from_dlpack(managed), tensor);
    } catch (const InvalidArgument &) {
    }
    DLManagedTensorVersioned versioned{};
    versioned.version.major = choices.pick<uint32_t>({1, 1, 1, 0, 2, UINT32_MAX});
    versioned.flags = choices.pick<uint64_t>({0, 0, 1, 2, UINT64_MAX});
    versioned.dl_tensor = tensor;
    try {
        expect_same(choices, const_from_dlpack(versioned), tensor);
        HBN_HOLDS(choices, versioned.version.major == 1, "another version was taken");
    } catch (const InvalidArgument &) {
    }
    try {
        expect_same(choices, from_dlpack(versioned), tensor);
        HBN_HOLDS(choices, versioned.version.major == 1 && !(versioned.flags & 1),
                  "a tensor that is read-only can be written to");
    } catch (const InvalidArgument &) {
    }
}

}  // namespace hbn::test
