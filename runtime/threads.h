#ifndef HBN_RUNTIME_THREADS_H
#define HBN_RUNTIME_THREADS_H

// Other threads see streaming stores in order only after this thread's fence.
extern "C" int hbn_stream_fence();

namespace hbn::internal {

// While one lives, this thread's parallel loops run serially if `serial`: for problems too small to share out.
// `streams`: whether kernels use streaming stores.
class KernelScope {
public:
    KernelScope(bool serial, bool streams);
    ~KernelScope();
    KernelScope(const KernelScope &) = delete;
    KernelScope &operator=(const KernelScope &) = delete;

private:
    bool serial_before_, streams_before_;
};

}  // namespace hbn::internal

#endif
