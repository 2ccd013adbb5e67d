/* Rotary embedding in place; rope.py has the formula. */
#include "parallel.h"
#include "simd.h"

struct rope {
    int64_t threads, bf16, tokens, heads, pairs;
    char *x;
    int64_t x_t, x_h;
    const float *cos, *sin; /* (T, pairs) */
    int64_t inverse;
};

INLINE void rotate(int64_t begin, int64_t end, const struct rope *a, const int bf16) {
    const float sign = a->inverse ? -1.0f : 1.0f;
    for (int64_t t = begin; t < end; t++) {
        const float *cos = a->cos + t * a->pairs, *sin = a->sin + t * a->pairs;
        for (int64_t h = 0; h < a->heads; h++) {
            void *first = (void *)at(a->x, t * a->x_t + h * a->x_h, bf16);
            void *second = (void *)at(first, a->pairs, bf16);
            for (int64_t i = 0; i < a->pairs; i += W) {
                vf c = load(cos, i, a->pairs, 0), s = load(sin, i, a->pairs, 0) * sign;
                vf u = load(first, i, a->pairs, bf16), v = load(second, i, a->pairs, bf16);
                store(first, i, a->pairs, u * c - v * s, bf16);
                store(second, i, a->pairs, v * c + u * s, bf16);
            }
        }
    }
}

static void range(int64_t begin, int64_t end, void *arg) {
    const struct rope *a = arg;
    if (a->bf16) rotate(begin, end, a, 1);
    else rotate(begin, end, a, 0);
}

void EXPORT(rope)(const struct rope *a) {
    topcoat_parallel_for(a->tokens, 8192 / (a->heads * a->pairs + 1) + 1, a->threads, range, (void *)a);
}
