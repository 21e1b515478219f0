// Stores that bypass the cache, for outputs larger than it: no line is read before it is written whole.
#ifndef HBN_SCHEDULES_PASSES_STREAMING_H
#define HBN_SCHEDULES_PASSES_STREAMING_H

#include <Halide.h>

namespace hbn {

// Call from a generator's schedule(), with its get_pipeline(). Where `stream` holds at run time, loops store
// whole dense vectors of `output` with movnt*, where it is a Tuple those of this `type`; other stores, such
// as tails, stay ordinary. The caller must
// see to it that each of those vectors is aligned to 16 bytes (the buffer, and every stride in bytes): the
// kernel faults otherwise. Lines that are not stored whole are slow. `stream` may consist of scalar inputs
// only. Kernels then call `int hbn_stream_fence()`, which must be an sfence; in parallel loops it is left to
// halide_do_par_for, which knows when a thread has done its share. Does nothing where not for x86.
void stream_stores(Halide::Pipeline pipeline, const Halide::Target &target,
                   const Halide::Func &output, const Halide::Type &type,
                   const Halide::Expr &stream);

}  // namespace hbn

#endif
