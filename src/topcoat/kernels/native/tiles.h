/* Matrix products on tiles of bf16, and how rows of a strided matrix are packed into tiles. AVX-512 and up.

A tile is 16 rows of 32 numbers, one KiB. A left tile holds 16 rows of the left matrix; a right tile holds 32 rows and
16 columns of the right matrix, two rows to a tile row, side by side:

    C[i][j] += sum over p of  left[i][2p] * right[p][2j] + left[i][2p + 1] * right[p][2j + 1]

which is what AMX computes in one instruction (TDPBF16PS). Which two of the 32 summed over stand side by side is free,
as long as both tiles agree: neighbours where a sum runs over the head's width, i and i + 16 where it runs over
positions, for then two float32 rows are joined without any shuffle. Sums are tiles of 16 x 16 floats. */
#pragma once
#include "simd.h"
#include <immintrin.h>

typedef uint16_t bf16;
enum { TILE = 512, SUMS = 256 }; /* numbers in a tile of bf16, and in a tile of sums */

enum start { FROM_ZERO, FROM_SUMS, FROM_COLUMNS }; /* what a product is added to; COLUMNS: a number for each column */

struct pair { /* two tiles that go into a product together, and where the next two are */
    const bf16 *first;
    int64_t second, step; /* both from the first, in numbers */
};

struct sums { /* two by two tiles: tile (i, j) begins at first + i * down + j * right, its rows lie `row` apart */
    float *first;
    int64_t down, right, row;
};

INLINE int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

#if defined(__AMX_BF16__)
struct tile_state { /* what LDTILECFG reads */
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

INLINE void tiles_begin(struct tile_state *before) {
    struct tile_state ours = {.palette = 1};
    for (int i = 0; i < 8; i++) ours.bytes[i] = 64, ours.rows[i] = 16;
    _tile_storeconfig(before);
    _tile_loadconfig(&ours);
}

INLINE void tiles_end(const struct tile_state *before) { _tile_loadconfig(before); }
#else
struct tile_state {
    char none;
};
INLINE void tiles_begin(struct tile_state *before) { (void)before; }
INLINE void tiles_end(const struct tile_state *before) { (void)before; }
#endif

/* Two by two tiles of sums: those of n pairs of left tiles and n pairs of right tiles, and what they start from. */
INLINE void multiply(int64_t n, struct pair a, struct pair b, struct sums c, const enum start start,
                     const float *columns) {
    const bf16 *a0 = a.first, *a1 = a0 + a.second, *b0 = b.first, *b1 = b0 + b.second;
    float *c00 = c.first, *c01 = c00 + c.right, *c10 = c00 + c.down, *c11 = c10 + c.right;
#if defined(__AMX_BF16__)
    __asm__ volatile("" ::: "memory"); /* gcc's tile intrinsics do not say that they read and write memory */
    if (start == FROM_ZERO) {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    } else if (start == FROM_SUMS) {
        _tile_loadd(0, c00, 4 * c.row); _tile_loadd(1, c01, 4 * c.row);
        _tile_loadd(2, c10, 4 * c.row); _tile_loadd(3, c11, 4 * c.row);
    } else {
        _tile_loadd(0, columns, 0); _tile_loadd(1, columns + 16, 0);
        _tile_loadd(2, columns, 0); _tile_loadd(3, columns + 16, 0);
    }
    for (int64_t k = 0; k < n; k++, a0 += a.step, a1 += a.step, b0 += b.step, b1 += b.step) {
        _tile_loadd(4, a0, 64); _tile_loadd(6, b0, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c00, 4 * c.row); _tile_stored(1, c01, 4 * c.row);
    _tile_stored(2, c10, 4 * c.row); _tile_stored(3, c11, 4 * c.row);
    __asm__ volatile("" ::: "memory");
#else
    for (int half = 0; half < 4; half++) { /* eight rows at a time: their sums stay in registers */
        const bf16 *left = (half < 2 ? a0 : a1) + (half & 1) * (TILE / 2);
        float *c0 = (half < 2 ? c00 : c10) + (half & 1) * 8 * c.row;
        float *c1 = (half < 2 ? c01 : c11) + (half & 1) * 8 * c.row;
        vf sums[8][2];
        for (int r = 0; r < 8; r++) {
            const float *first = start == FROM_SUMS ? c0 + r * c.row : columns;
            const float *second = start == FROM_SUMS ? c1 + r * c.row : columns + 16;
            sums[r][0] = start == FROM_ZERO ? (vf){0} : (vf)_mm512_loadu_ps(first);
            sums[r][1] = start == FROM_ZERO ? (vf){0} : (vf)_mm512_loadu_ps(second);
        }
        for (int64_t k = 0; k < n; k++, left += a.step) {
            for (int p = 0; p < 16; p++) {
                vu x0 = (vu)_mm512_loadu_si512(b0 + k * b.step + 32 * p);
                vu x1 = (vu)_mm512_loadu_si512(b1 + k * b.step + 32 * p);
                vf even0 = (vf)(x0 << 16), odd0 = (vf)(x0 & 0xffff0000u);
                vf even1 = (vf)(x1 << 16), odd1 = (vf)(x1 & 0xffff0000u);
                for (int r = 0; r < 8; r++) {
                    int pair;
                    memcpy(&pair, left + 32 * r + 2 * p, sizeof pair);
                    vu y = (vu)_mm512_set1_epi32(pair);
                    vf even = (vf)(y << 16), odd = (vf)(y & 0xffff0000u);
                    sums[r][0] = even * even0 + (odd * odd0 + sums[r][0]);
                    sums[r][1] = even * even1 + (odd * odd1 + sums[r][1]);
                }
            }
        }
        for (int r = 0; r < 8; r++) {
            _mm512_storeu_ps(c0 + r * c.row, sums[r][0]);
            _mm512_storeu_ps(c1 + r * c.row, sums[r][1]);
        }
    }
#endif
}

/* Two rows of floats as one row of a tile: a_0 b_0 a_1 b_1 ..., rounded to nearest, ties away from zero. `rounded` is
   the first half of it, for rows that are joined more than once. */
INLINE vu rounded(vf v) { return (vu)v + 0x8000u; }
INLINE __m512i joined(vu a, vu b) { return (__m512i)(a >> 16 | (b & 0xffff0000u)); }

/* Numbers i .. i + 31 of a row of n, zeros from n on; a row that is not there is NULL. `whole`: everything is there. */
INLINE __m512i row32(const bf16 *row, int64_t i, int64_t n, const int whole) {
    if (whole) return _mm512_loadu_si512(row + i);
    if (!row || i >= n) return _mm512_setzero_si512();
    return _mm512_maskz_loadu_epi16(i + 32 <= n ? 0xffffffffu : (1u << (n - i)) - 1, row + i);
}

/* Two rows side by side: numbers 0 .. 15 of each, or 16 .. 31 of each. */
INLINE __m512i beside(__m512i a, __m512i b, const int upper) {
    __m256i x = upper ? _mm512_extracti64x4_epi64(a, 1) : _mm512_castsi512_si256(a);
    __m256i y = upper ? _mm512_extracti64x4_epi64(b, 1) : _mm512_castsi512_si256(b);
    return (__m512i)((vu)_mm512_cvtepu16_epi32(x) | (vu)_mm512_cvtepu16_epi32(y) << 16);
}

/* Numbers i .. i + 31 of a row of n, rounded to nearest. */
INLINE void store32(bf16 *row, int64_t i, int64_t n, vf low, vf high) {
#if defined(__AVX512BF16__)
    __m512i v = (__m512i)_mm512_cvtne2ps_pbh(high, low);
#else
    __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512((__m256i)to_bf16(low)), (__m256i)to_bf16(high), 1);
#endif
    if (LIKELY(i + 32 <= n)) _mm512_storeu_si512(row + i, v);
    else _mm512_mask_storeu_epi16(row + i, (__mmask32)((1u << (n - i)) - 1), v);
}

/* Rows and columns of 16 x 16 numbers of 32 bits change places. */
INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}

/* A matrix of which rows and columns are packed: `rows` x `width` numbers, rows `stride` apart. */
struct matrix {
    const bf16 *first;
    int64_t stride, rows, width;
};

INLINE const bf16 *row_of(const struct matrix *m, int64_t i) { return i < m->rows ? m->first + i * m->stride : NULL; }

/* Asks for rows r .. r + n - 1, as far as there are, long before they are needed: hardware does not foresee them. */
INLINE void ask_for(const struct matrix *m, int64_t r, int64_t n) {
    for (int64_t end = least(r + n, m->rows); r < end; r++)
        for (int64_t d = 0; d < m->width; d += 32)
            _mm_prefetch((const char *)(m->first + r * m->stride + d), _MM_HINT_T1);
}

INLINE int is_whole(const struct matrix *m, int64_t r, int64_t n) { return r + n <= m->rows && m->width % 32 == 0; }

/* Rows r .. r + 15 as left tiles, one for each 32 columns. */
INLINE void left_tiles(const struct matrix *m, int64_t r, bf16 *to, const int whole) {
    for (int64_t d = 0; d < m->width; d += 32, to += TILE)
        for (int i = 0; i < 16; i++) _mm512_store_si512(to + 32 * i, row32(row_of(m, r + i), d, m->width, whole));
}

static void pack_left(const struct matrix *m, int64_t r, bf16 *to) {
    if (is_whole(m, r, 16)) left_tiles(m, r, to, 1);
    else left_tiles(m, r, to, 0);
}

/* Rows r .. r + 15 as columns of right tiles, one tile for each 32 of the width. */
INLINE void right_tiles_transposed(const struct matrix *m, int64_t r, bf16 *to, const int whole) {
    for (int64_t d = 0; d < m->width; d += 32, to += TILE) {
        __m512i v[16];
        for (int i = 0; i < 16; i++) v[i] = row32(row_of(m, r + i), d, m->width, whole);
        transpose(v);
        for (int i = 0; i < 16; i++) _mm512_store_si512(to + 32 * i, v[i]);
    }
}

static void pack_right_transposed(const struct matrix *m, int64_t r, bf16 *to) {
    if (is_whole(m, r, 16)) right_tiles_transposed(m, r, to, 1);
    else right_tiles_transposed(m, r, to, 0);
}

/* Rows r .. r + 31 as right tiles (i and i + 16 side by side), one for each 16 columns up to a multiple of 32. */
INLINE void right_tiles(const struct matrix *m, int64_t r, bf16 *to, const int whole) {
    for (int64_t d = 0; d < m->width; d += 32, to += 2 * TILE)
        for (int i = 0; i < 16; i++) {
            __m512i a = row32(row_of(m, r + i), d, m->width, whole);
            __m512i b = row32(row_of(m, r + i + 16), d, m->width, whole);
            _mm512_store_si512(to + 32 * i, beside(a, b, 0));
            _mm512_store_si512(to + TILE + 32 * i, beside(a, b, 1));
        }
}

static void pack_right(const struct matrix *m, int64_t r, bf16 *to) {
    if (is_whole(m, r, 32)) right_tiles(m, r, to, 1);
    else right_tiles(m, r, to, 0);
}

/* Rows r .. r + 31 as columns of left tiles (i and i + 16 side by side), one for each 16 of the width, `step` apart */
INLINE void pack_left_transposed(const struct matrix *m, int64_t r, bf16 *to, int64_t step) {
    for (int64_t d = 0; d < m->width; d += 32, to += 2 * step) {
        __m512i low[16], high[16];
        for (int i = 0; i < 16; i++) {
            __m512i a = row32(row_of(m, r + i), d, m->width, 0), b = row32(row_of(m, r + i + 16), d, m->width, 0);
            low[i] = beside(a, b, 0), high[i] = beside(a, b, 1);
        }
        transpose(low), transpose(high);
        for (int i = 0; i < 16; i++) {
            _mm512_store_si512(to + 32 * i, low[i]);
            _mm512_store_si512(to + step + 32 * i, high[i]);
        }
    }
}

/* The sum of products of row r of one matrix with row r of another, of the same width. */
INLINE float row_product(const struct matrix *m, const struct matrix *other, int64_t r, const int whole) {
    vf sums = {0};
    for (int64_t d = 0; d < m->width; d += 32) {
        __m512i a = row32(row_of(m, r), d, m->width, whole), b = row32(row_of(other, r), d, m->width, whole);
#if defined(__AVX512BF16__)
        sums = _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
#else
        sums += (vf)((vu)a << 16) * (vf)((vu)b << 16) + (vf)((vu)a & 0xffff0000u) * (vf)((vu)b & 0xffff0000u);
#endif
    }
    return _mm512_reduce_add_ps(sums);
}

/* Lanes i with from <= i < to. */
INLINE __mmask16 lanes(int64_t from, int64_t to) {
    uint32_t low = from <= 0 ? 0xffff : from >= 16 ? 0 : 0xffffu << from;
    uint32_t high = to >= 16 ? 0xffff : to <= 0 ? 0 : (1u << to) - 1;
    return (__mmask16)(low & high);
}

/* The natural logarithm of positive numbers: x = m 2^e with m in 0.75 .. 1.5, log m = 2 atanh((m - 1) / (m + 1)). */
INLINE vf log_of(vf x) {
    vf m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
    vf e = (vf)_mm512_getexp_ps(x) + (vf)_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(m, splat(1), _CMP_LT_OQ), splat(1));
    vf s = (m - 1.0f) / (m + 1.0f), t = s * s;
    vf p = t * 0.11111111f + 0.14285715f;
    p = p * t + 0.2f;
    p = p * t + 0.33333334f;
    return e * 0.69314718f + (p * t * s + s) * 2.0f;
}
