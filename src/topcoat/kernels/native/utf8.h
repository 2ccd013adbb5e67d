/* Characters of UTF-8 that are white space, as Python's str.isspace says, and eight bytes at once. */
#pragma once
#include "simd.h"

INLINE uint64_t load8(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, 8);
    return x;
}

static const uint8_t ASCII_SPACE[128] = {[9] = 1,  [10] = 1, [11] = 1, [12] = 1, [13] = 1,
                                         [28] = 1, [29] = 1, [30] = 1, [31] = 1, [32] = 1};

INLINE int two_space(const uint8_t *p) { return p[0] == 0xC2 && (p[1] == 0x85 || p[1] == 0xA0); }

INLINE int three_space(const uint8_t *p) {
    if (p[0] == 0xE2 && p[1] == 0x80) return p[2] <= 0x8A || p[2] == 0xA8 || p[2] == 0xA9 || p[2] == 0xAF;
    if (p[0] == 0xE2) return p[1] == 0x81 && p[2] == 0x9F;
    return (p[0] == 0xE1 && p[1] == 0x9A && p[2] == 0x80) || (p[0] == 0xE3 && p[1] == 0x80 && p[2] == 0x80);
}

/* Bytes of the white space that begins at p, or 0. Three bytes are read. */
INLINE int space_at(const uint8_t *p) {
    if (*p < 0x80) return ASCII_SPACE[*p];
    return two_space(p) ? 2 : three_space(p) ? 3 : 0;
}

/* Bytes of the white space that ends before p, or 0; the text begins at `start`, before p. */
INLINE int space_before(const uint8_t *p, const uint8_t *start) {
    if (p[-1] < 0x80) return ASCII_SPACE[p[-1]];
    return p - start >= 2 && two_space(p - 2) ? 2 : p - start >= 3 && three_space(p - 3) ? 3 : 0;
}
