/* RMSNorm of rows, forward and backward; rms_norm.py has the formulas. Row r of x (T, H, K) is x[r / H, r % H]. */
#include "parallel.h"
#include "simd.h"

struct rows { /* one tensor: its address and its strides over T and H, in elements */
    char *data;
    int64_t t, h;
};

INLINE void *row_of(const struct rows *x, int64_t r, int64_t heads, int bf16) {
    return (void *)at(x->data, r / heads * x->t + r % heads * x->h, bf16);
}

struct forward {
    int64_t threads, bf16, rows, heads, n;
    struct rows x, delta, out; /* delta.data NULL: a plain norm; else x + delta is written to delta first */
    const float *weight;
    float *rstd;
    float eps;
};

INLINE void forward_rows(int64_t begin, int64_t end, const struct forward *a, const int bf16, const int add) {
    for (int64_t r = begin; r < end; r++) {
        const void *x = row_of(&a->x, r, a->heads, bf16);
        void *out = row_of(&a->out, r, a->heads, bf16);
        vf squares = {0}, more = {0};
        if (add) {
            void *delta = row_of(&a->delta, r, a->heads, bf16);
            for (int64_t i = 0; i < a->n; i += W)
                store(delta, i, a->n, load(x, i, a->n, bf16) + load(delta, i, a->n, bf16), bf16);
            x = delta; /* the norm is that of the rounded sum, bit for bit as a plain norm of it */
        }
        for (int64_t i = 0; i < a->n; i += 2 * W) { /* two sums: an addition takes four cycles */
            vf v = load(x, i, a->n, bf16);
            squares += v * v;
            if (i + W < a->n) {
                v = load(x, i + W, a->n, bf16);
                more += v * v;
            }
        }
        float rstd = 1.0f / sqrtf(sum(squares + more) / (float)a->n + a->eps);
        a->rstd[r] = rstd;
        for (int64_t i = 0; i < a->n; i += W)
            store(out, i, a->n, load(x, i, a->n, bf16) * rstd * load(a->weight, i, a->n, 0), bf16);
    }
}

static void forward_range(int64_t begin, int64_t end, void *arg) {
    const struct forward *a = arg;
    if (a->delta.data) {
        if (a->bf16) forward_rows(begin, end, a, 1, 1);
        else forward_rows(begin, end, a, 0, 1);
    } else {
        if (a->bf16) forward_rows(begin, end, a, 1, 0);
        else forward_rows(begin, end, a, 0, 0);
    }
}

struct backward {
    int64_t threads, bf16, rows, heads, n;
    struct rows dn, x, residual, out; /* residual.data NULL: none */
    const float *weight, *rstd;
};

INLINE void backward_rows(int64_t begin, int64_t end, const struct backward *a, const int bf16) {
    for (int64_t r = begin; r < end; r++) {
        const void *dn = row_of(&a->dn, r, a->heads, bf16), *x = row_of(&a->x, r, a->heads, bf16);
        const void *residual = a->residual.data ? row_of(&a->residual, r, a->heads, bf16) : 0;
        void *out = row_of(&a->out, r, a->heads, bf16);
        float rstd = a->rstd[r];
        vf dot = {0};
        for (int64_t i = 0; i < a->n; i += W)
            dot += load(dn, i, a->n, bf16) * load(a->weight, i, a->n, 0) * (load(x, i, a->n, bf16) * rstd);
        float mean = sum(dot) / (float)a->n;
        for (int64_t i = 0; i < a->n; i += W) {
            vf g = load(dn, i, a->n, bf16) * load(a->weight, i, a->n, 0);
            vf dx = rstd * (g - load(x, i, a->n, bf16) * rstd * mean);
            if (residual) dx += load(residual, i, a->n, bf16);
            store(out, i, a->n, dx, bf16);
        }
    }
}

static void backward_range(int64_t begin, int64_t end, void *arg) {
    const struct backward *a = arg;
    if (a->bf16) backward_rows(begin, end, a, 1);
    else backward_rows(begin, end, a, 0);
}

#define SHARE(n) (16384 / ((n) + 1) + 1) /* rows worth waking a thread for */

void EXPORT(rms_norm)(const struct forward *a) {
    topcoat_parallel_for(a->rows, SHARE(a->n), a->threads, forward_range, (void *)a);
}

void EXPORT(rms_norm_backward)(const struct backward *a) {
    topcoat_parallel_for(a->rows, SHARE(a->n), a->threads, backward_range, (void *)a);
}
