/* Codes of 2, 3, 4 or 8 bits side by side, the first in the lowest bits. */
#pragma once
#include "simd.h"

typedef uint64_t v8q __attribute__((vector_size(64)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef uint8_t v16b __attribute__((vector_size(16)));

/* Eight codes from the lowest bits of `word` on. */
INLINE v8i eight(uint64_t word, const int bits) {
    const uint64_t b = (uint64_t)bits;
    v8q all = (v8q){0} + word;
    return __builtin_convertvector(all >> (v8q){0, b, 2 * b, 3 * b, 4 * b, 5 * b, 6 * b, 7 * b} & (1u << b) - 1, v8i);
}

/* Sixteen codes in 2 * bits bytes. */
INLINE vi sixteen(const uint8_t *bytes, const int bits) {
    vi codes;
    if (bits == 8) {
        v16b wide;
        memcpy(&wide, bytes, sizeof wide);
        return __builtin_convertvector(wide, vi);
    }
    uint64_t word = 0;
    memcpy(&word, bytes, 2 * (size_t)bits);
    v8i halves[2] = {eight(word, bits), eight(word >> 8 * bits, bits)};
    memcpy(&codes, halves, sizeof codes);
    return codes;
}
