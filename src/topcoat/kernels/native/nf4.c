/* Codes of few levels to weights in one pass, nested scales included; nf4_dequant.py has the formula. The bits are
   torch's. */
#include "codes.h"
#include "parallel.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

typedef uint8_t v8b __attribute__((vector_size(8)));
typedef uint16_t v8h __attribute__((vector_size(16)));

struct nf4 {
    int64_t threads, bf16, rows, columns;
    char *out;
    int64_t out_t;
    const uint8_t *packed;
    const void *absmax;                    /* float; with nested scales uint8 codes into `values` */
    const float *table;                    /* 16 numbers, of which 2^bits count */
    int64_t bits, block;
    const float *nested, *offset, *values; /* NULL: absmax is float */
    int64_t nested_block;
};

/* The scale of block b. The product goes through double so that no compiler fuses it with the sum. */
INLINE float scale_of(const struct nf4 *a, int64_t b) {
    if (!a->nested) return ((const float *)a->absmax)[b];
    float value = a->values[((const uint8_t *)a->absmax)[b]];
    return (float)((double)value * (double)a->nested[b / a->nested_block]) + *a->offset;
}

/* 16 codes in 8 bytes, the high nibble first. */
INLINE vi nibbles(const uint8_t *bytes) {
    v8b eight;
    memcpy(&eight, bytes, sizeof eight);
    v8h wide = __builtin_convertvector(eight, v8h);
    return __builtin_convertvector((v16b)(wide >> 4 | (wide & 15) << 8), vi);
}

/* The levels of 16 codes in 2 * bits bytes. */
INLINE vf levels(const uint8_t *bytes, const float *table, const int bits) {
    vi codes = bits == 4 ? nibbles(bytes) : sixteen(bytes, bits);
#if defined(__AVX512F__)
    vf all;
    memcpy(&all, table, sizeof all);
    return (vf)_mm512_permutexvar_ps((__m512i)codes, (__m512)all);
#elif defined(__AVX2__)
    vf v;
    __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
    for (int half = 0; half < 2; half++) {
        __m256i c;
        memcpy(&c, (const char *)&codes + 32 * half, sizeof c);
        __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(c, 28)); /* bit 3 as the sign */
        __m256 found = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, c), _mm256_permutevar8x32_ps(high, c), is_high);
        memcpy((char *)&v + 32 * half, &found, sizeof found);
    }
    return v;
#else
    vf v;
    for (int j = 0; j < W; j++) v[j] = table[codes[j]];
    return v;
#endif
}

/* Code i of all. */
INLINE int code_at(const uint8_t *packed, int64_t i, const int bits) {
    if (bits == 4) return packed[i / 2] >> (i % 2 ? 0 : 4) & 15;
    int64_t bit = i * bits, byte = bit / 8, place = bit % 8;
    int word = packed[byte] | (place + bits > 8 ? packed[byte + 1] << 8 : 0);
    return word >> place & ((1 << bits) - 1);
}

INLINE void rows(int64_t begin, int64_t end, const struct nf4 *a, const int bits, const int bf16) {
    const int64_t apart = bits == 4 ? 2 : 8; /* codes that begin on a byte */
    for (int64_t o = begin; o < end; o++) {
        void *out = (void *)at(a->out, o * a->out_t, bf16);
        int64_t first = o * a->columns, last = first + a->columns; /* weights count from the first row on */
        for (int64_t i = first; i < last;) {
            int64_t b = i / a->block, stop = (b + 1) * a->block < last ? (b + 1) * a->block : last;
            float scale = scale_of(a, b);
            if (i % apart == 0)
                for (; i + W <= stop; i += W)
                    store(out, i - first, a->columns, levels(a->packed + i * bits / 8, a->table, bits) * scale, bf16);
            for (; i < stop; i++) { /* what no whole vector holds */
                vf v = splat(a->table[code_at(a->packed, i, bits)] * scale);
                store((void *)at(out, i - first, bf16), 0, 1, v, bf16);
            }
        }
    }
}

#define RANGE(bits, bf16) \
    static void range_##bits##_##bf16(int64_t begin, int64_t end, void *arg) { rows(begin, end, arg, bits, bf16); }
RANGE(2, 0) RANGE(2, 1) RANGE(3, 0) RANGE(3, 1) RANGE(4, 0) RANGE(4, 1)

void EXPORT(dequantize_nf4)(const struct nf4 *a) {
    static void (*const ways[5][2])(int64_t, int64_t, void *) = {
        [2] = {range_2_0, range_2_1}, [3] = {range_3_0, range_3_1}, [4] = {range_4_0, range_4_1}};
    topcoat_parallel_for(a->rows, 32768 / (a->columns + 1) + 1, a->threads, ways[a->bits][a->bf16], (void *)a);
}
