/* The square root of a double, rounded to nearest, for processors that have none: kernels written in C++ call it in
   place of the C library's. Digit by digit, a bit at a time; it is taken once a channel. */
#include <stdint.h>

double hbn_pack_sqrt(double x);

typedef union word {
    double value;
    uint64_t bits;
} word;

double hbn_pack_sqrt(double x) {
    const uint64_t implicit = (uint64_t)1 << 52;
    word w;
    int exponent;
    uint64_t rest, root = 0, step;
    w.value = x;
    exponent = (int)(w.bits >> 52);
    if (x == 0 || exponent >= 0x7ff) {
        /* Zeros, infinity and NaN are their own; of negative numbers there is none. */
        return exponent > 0x7ff ? x - x + (x - x) / (x - x) : x;
    }
    rest = w.bits & (implicit - 1);
    if (exponent == 0) {
        for (exponent = 1; !(rest & implicit); exponent--) {
            rest <<= 1;
        }
    }
    rest |= implicit;
    exponent -= 1023;
    /* rest / 2^52 * 2^exponent, the exponent even, so that the root of rest * 4 / 2^52 has 53 bits and one more. */
    rest <<= 1 + (exponent & 1);
    exponent = (exponent - (exponent & 1)) / 2;
    /* root is twice the digits found. */
    for (step = implicit << 1; step; step >>= 1) {
        if (root + step <= rest) {
            rest -= root + step;
            root += step << 1;
        }
        rest <<= 1;
    }
    /* The digits are 53 bits and one to round by: a root is never half way between two doubles. */
    root = (root >> 2) + (root >> 1 & 1);
    w.bits = ((uint64_t)(exponent + 1023) << 52) + (root - implicit);
    return w.value;
}
