/* act(x) of a gated MLP and its slope; gated.py has the formulas. */
#pragma once
#include "simd.h"

enum activation { SILU, GELU, GELU_TANH }; /* gated.py: ACTIVATIONS */

/* act(x), and its derivative into *slope. */
INLINE vf activate(vf x, vf *slope, const int activation, const int bf16) {
    if (activation == GELU) {
        vf cdf = normal_cdf(x);
        *slope = cdf + x * exp_of(-0.5f * x * x) * 0.39894228040143268f;
        return x * cdf;
    }
    vf inner = x, growth = splat(1.0f);
    if (activation == GELU_TANH) {
        const float twice = 1.5957691216057308f; /* 2 sqrt(2 / pi): (1 + tanh u) / 2 = sigmoid(2 u) */
        inner = twice * (x + 0.044715f * x * x * x);
        growth = twice * (1.0f + 0.134145f * x * x);
    }
    vf s = bf16 ? quick_sigmoid_of(inner) : sigmoid_of(inner);
    *slope = s * (1.0f + x * (1.0f - s) * growth);
    return x * s;
}
