// libFuzzer's entry: HBN_FUZZ_TARGET is one of fuzz.h's.
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    hbn::test::Choices choices(data, size);
    hbn::test::HBN_FUZZ_TARGET(choices);
    return 0;
}
