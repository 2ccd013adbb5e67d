/* Rows of int8 codes to weights, w = code * scale of its row; int8_dequant.py has the formula. */
#include "parallel.h"
#include "simd.h"

typedef int8_t v16c __attribute__((vector_size(16)));

struct int8 {
    const int8_t *codes;
    const float *scale;
    char *out;
    int64_t columns, out_t;
};

INLINE void rows(int64_t begin, int64_t end, const struct int8 *a, const int bf16) {
    for (int64_t o = begin; o < end; o++) {
        void *out = (void *)at(a->out, o * a->out_t, bf16);
        const int8_t *codes = a->codes + o * a->columns;
        vf scale = splat(a->scale[o]);
        for (int64_t i = 0; i < a->columns; i += W) {
            int64_t left = a->columns - i;
            v16c some = {0};
            if (LIKELY(left >= W)) memcpy(&some, codes + i, W);
            else memcpy(&some, codes + i, (size_t)left);
            store(out, i, a->columns, __builtin_convertvector(some, vf) * scale, bf16);
        }
    }
}

static void rows_of_float(int64_t begin, int64_t end, void *arg) { rows(begin, end, arg, 0); }
static void rows_of_bf16(int64_t begin, int64_t end, void *arg) { rows(begin, end, arg, 1); }

void EXPORT(dequantize_int8)(int64_t threads, int64_t bf16, int64_t count, int64_t columns, char *out, int64_t out_t,
                             const int8_t *codes, const float *scale) {
    struct int8 a = {codes, scale, out, columns, out_t};
    topcoat_parallel_for(count, 32768 / (columns + 1) + 1, threads, bf16 ? rows_of_bf16 : rows_of_float, &a);
}
