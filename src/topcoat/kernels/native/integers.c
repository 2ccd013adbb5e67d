/* Integer codes of groups to weights, w = code * scale + low; integer_dequant.py has the formula. A scale comes from
   float16, so a product with a code of at most 8 bits is exact, and it does not matter whether a sum is fused with it. */
#include "codes.h"
#include "parallel.h"

struct integers {
    const uint8_t *codes;
    const float *scale, *low;
    char *out;
    int64_t columns, out_t, group;
};

INLINE void rows(int64_t begin, int64_t end, const struct integers *a, const int bits, const int bf16) {
    int64_t groups = a->columns / a->group;
    for (int64_t o = begin; o < end; o++) {
        void *out = (void *)at(a->out, o * a->out_t, bf16);
        const uint8_t *codes = a->codes + o * a->columns * bits / 8;
        for (int64_t g = 0; g < groups; g++) {
            vf scale = splat(a->scale[o * groups + g]), low = splat(a->low[o * groups + g]);
            for (int64_t i = g * a->group; i < (g + 1) * a->group; i += W) {
                vf values = __builtin_convertvector(sixteen(codes + i * bits / 8, bits), vf);
                store(out, i, a->columns, values * scale + low, bf16);
            }
        }
    }
}

#define RANGE(bits, bf16) \
    static void range_##bits##_##bf16(int64_t begin, int64_t end, void *arg) { rows(begin, end, arg, bits, bf16); }
RANGE(2, 0) RANGE(2, 1) RANGE(3, 0) RANGE(3, 1) RANGE(4, 0) RANGE(4, 1) RANGE(8, 0) RANGE(8, 1)

void EXPORT(dequantize_integers)(int64_t threads, int64_t bf16, int64_t count, int64_t columns, char *out,
                                 int64_t out_t, const uint8_t *codes, const float *scale, const float *low,
                                 int64_t bits, int64_t group) {
    struct integers a = {codes, scale, low, out, columns, out_t, group};
    static void (*const ways[9][2])(int64_t, int64_t, void *) = {
        [2] = {range_2_0, range_2_1}, [3] = {range_3_0, range_3_1},
        [4] = {range_4_0, range_4_1}, [8] = {range_8_0, range_8_1}};
    topcoat_parallel_for(count, 32768 / (columns + 1) + 1, threads, ways[bits][bf16], &a);
}
