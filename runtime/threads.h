#ifndef HBN_RUNTIME_THREADS_H
#define HBN_RUNTIME_THREADS_H

// Other threads see streaming stores in order only after this thread's fence.
extern "C" int hbn_stream_fence();

namespace hbn::internal {

// While one lives, this thread's parallel loops run serially: for problems too small to share out.
class SerialScope {
public:
    explicit SerialScope(bool serial);
    ~SerialScope();
    SerialScope(const SerialScope &) = delete;
    SerialScope &operator=(const SerialScope &) = delete;

private:
    bool before_;
};

}  // namespace hbn::internal

#endif
