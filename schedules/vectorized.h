// CPU schedules over vectors, parameterized by what differs between CPUs.
#ifndef HBN_SCHEDULES_VECTORIZED_H
#define HBN_SCHEDULES_VECTORIZED_H

#include "schedules/pipeline.h"

namespace hbn {

// Its parameters that have no default here need the family's, which the family sets before the call.
void schedule_vectorized(ChannelPipeline pipeline);

}  // namespace hbn

#endif
