// libFuzzer's entry: HBN_FUZZ_PROPERTY is one of fuzz.h's.
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    hbn::test::Choices choices(data, size);
    hbn::test::HBN_FUZZ_PROPERTY(choices);
    return 0;
}
