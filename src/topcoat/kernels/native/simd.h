/* Sixteen floats at a time in the compiler's vector extension: one source, lowered to whatever the variant has.

Every variant adds in the same order, so they differ only where fused multiply-add rounds once instead of twice, and where
avx512_amx rounds a number below 2^-126 to bf16: that is zero there. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define JOIN_(a, b, c) a##b##_##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define EXPORT(name) JOIN(topcoat_, VARIANT, name) /* topcoat_avx2_rms_norm, ... */
#define INLINE static inline __attribute__((always_inline))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define W 16

typedef float vf __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));

INLINE vf splat(float x) { return x - (vf){0}; } /* minus: 0 + -0 would be 0 */
INLINE vf pick(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf larger(vf a, vf b) { return pick(a > b, a, b); } /* b where either is NaN */

INLINE float sum(vf v) {
    float total = 0;
    for (int i = 0; i < W; i++) total += v[i];
    return total;
}

/* Element i of x, as float: `bf16` says which of the two dtypes x points to. */
INLINE const void *at(const void *x, int64_t i, int bf16) { return (const char *)x + (i << (bf16 ? 1 : 2)); }

INLINE vf from_bf16(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }

#if defined(__AVX512BF16__)
#include <immintrin.h>
INLINE vh to_bf16(vf v) { return (vh)_mm512_cvtneps_pbh((__m512)v); } /* the same, numbers below 2^-126 as zeros */
#else
INLINE vh to_bf16(vf v) { /* to nearest, ties to even; a NaN stays one */
    vu u = (vu)v, rounded = u + 0x7fffu + (u >> 16 & 1u);
    vu nan = (vu)(v != v);
    return __builtin_convertvector(((rounded & ~nan) | ((u | 0x400000u) & nan)) >> 16, vh);
}
#endif

static __attribute__((noinline)) void load_some(vf *v, const void *x, int n, int bf16) {
    if (bf16) {
        vh h = {0};
        memcpy(&h, x, 2 * (size_t)n);
        *v = from_bf16(h);
    } else {
        *v = (vf){0};
        memcpy(v, x, 4 * (size_t)n);
    }
}

static __attribute__((noinline)) void store_some(void *x, const vf *v, int n, int bf16) {
    if (bf16) {
        vh h = to_bf16(*v);
        memcpy(x, &h, 2 * (size_t)n);
    } else {
        memcpy(x, v, 4 * (size_t)n);
    }
}

/* x[i .. i + W - 1], zeros from n on. */
INLINE vf load(const void *x, int64_t i, int64_t n, int bf16) {
    vf v;
    if (LIKELY(i + W <= n)) {
        if (!bf16) {
            memcpy(&v, at(x, i, 0), sizeof v);
            return v;
        }
        vh h;
        memcpy(&h, at(x, i, 1), sizeof h);
        return from_bf16(h);
    }
    load_some(&v, at(x, i, bf16), (int)(n - i), bf16);
    return v;
}

INLINE void store(void *x, int64_t i, int64_t n, vf v, int bf16) {
    void *to = (void *)at(x, i, bf16);
    if (LIKELY(i + W <= n)) {
        if (bf16) {
            vh h = to_bf16(v);
            memcpy(to, &h, sizeof h);
        } else {
            memcpy(to, &v, sizeof v);
        }
        return;
    }
    store_some(to, &v, (int)(n - i), bf16);
}

/* e^x to 1e-7 of its value (Cephes): x = n ln 2 + r, a polynomial in r, times 2^n. 0 below -87.7, inf above 88.4. */
INLINE vf exp_of(vf x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number, which the low bits then hold */
    x = pick(x < -88.0f, splat(-88.0f), x);
    x = pick(x > 89.0f, splat(89.0f), x);
    vf shifted = x * 1.44269504088896341f + shift, n = shifted - shift;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (vf)(((vi)shifted - 0x4b400000 + 127) << 23); /* -127 makes the factor 0, 128 makes it inf */
}

INLINE vf sigmoid_of(vf x) { return 1.0f / (1.0f + exp_of(-x)); }

#if defined(__AVX512F__)
#include <immintrin.h>

/* 2^x to 3.4e-6 of its value, far below bf16's rounding: 2^floor(x) times a polynomial, exact at whole numbers. */
INLINE vf exp2_of(vf x) {
    vf f = x - (vf)_mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vf p = f * 0.013555746750f + 0.052032369783f;
    p = p * f + 0.241379762637f;
    p = p * f + 0.693032120830f;
    p = p * f + 1.0f;
    return _mm512_scalef_ps(p, x);
}

/* The sigmoid to 4e-6 of its value, for numbers that are rounded to bf16: no division. */
INLINE vf quick_sigmoid_of(vf x) {
    vf d = 1.0f + exp2_of(x * -1.44269504088896341f);
    vf r = _mm512_rcp14_ps(d);
    r = r * (2.0f - d * r);
    return pick(d > 1e38f, splat(0), r); /* inf - inf */
}
#else
INLINE vf quick_sigmoid_of(vf x) { return sigmoid_of(x); }
#endif

/* tanh to a few units in the last place (the rational of Eigen's ptanh_float). */
INLINE vf tanh_of(vf x) {
    x = pick(x > 7.9f, splat(7.9f), pick(x < -7.9f, splat(-7.9f), x));
    vf s = x * x;
    vf p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
    p = p * s - 8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    vf q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return x * p / q;
}

/* The standard normal's distribution function, to 1.2e-7 of its value (Numerical Recipes' erfcc). */
INLINE vf normal_cdf(vf x) {
    vf z = x * 0.70710678118654752f;
    z = pick(z < 0.0f, -z, z);
    vf t = 1.0f / (1.0f + 0.5f * z);
    vf p = t * 0.17087277f - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    vf tail = 0.5f * t * exp_of(p - z * z); /* beyond |x| */
    return pick(x > 0.0f, 1.0f - tail, tail);
}
