/* act(gate) * up, forward and backward in place; gated.py has the formulas. */
#include "gated.h"
#include "parallel.h"

struct gated {
    char *gate_up, *h;
    int64_t gate_up_t, h_t, n;
    int bf16, activation;
};

INLINE void forward_rows(int64_t begin, int64_t end, const struct gated *a, const int bf16, const int activation) {
    for (int64_t t = begin; t < end; t++) {
        const void *gate = at(a->gate_up, t * a->gate_up_t, bf16), *up = at(gate, a->n, bf16);
        void *h = (void *)at(a->h, t * a->h_t, bf16);
        vf slope;
        for (int64_t i = 0; i < a->n; i += W)
            store(h, i, a->n, activate(load(gate, i, a->n, bf16), &slope, activation, bf16) * load(up, i, a->n, bf16), bf16);
    }
}

INLINE void backward_rows(int64_t begin, int64_t end, const struct gated *a, const int bf16, const int activation) {
    for (int64_t t = begin; t < end; t++) {
        void *gate = (void *)at(a->gate_up, t * a->gate_up_t, bf16), *up = (void *)at(gate, a->n, bf16);
        void *dh = (void *)at(a->h, t * a->h_t, bf16);
        for (int64_t i = 0; i < a->n; i += W) {
            vf slope, value = activate(load(gate, i, a->n, bf16), &slope, activation, bf16);
            vf u = load(up, i, a->n, bf16), d = load(dh, i, a->n, bf16);
            store(gate, i, a->n, d * u * slope, bf16);
            store(up, i, a->n, d * value, bf16);
            store(dh, i, a->n, value * u, bf16);
        }
    }
}

#define FOR_EACH_KIND(rows)                                                                                            \
    const struct gated *a = arg;                                                                                       \
    if (a->bf16) {                                                                                                     \
        if (a->activation == SILU) rows(begin, end, a, 1, SILU);                                                       \
        else if (a->activation == GELU) rows(begin, end, a, 1, GELU);                                                  \
        else rows(begin, end, a, 1, GELU_TANH);                                                                        \
    } else {                                                                                                           \
        if (a->activation == SILU) rows(begin, end, a, 0, SILU);                                                       \
        else if (a->activation == GELU) rows(begin, end, a, 0, GELU);                                                  \
        else rows(begin, end, a, 0, GELU_TANH);                                                                        \
    }

static void forward_range(int64_t begin, int64_t end, void *arg) { FOR_EACH_KIND(forward_rows) }
static void backward_range(int64_t begin, int64_t end, void *arg) { FOR_EACH_KIND(backward_rows) }

void EXPORT(gated)(int64_t threads, int64_t bf16, int64_t tokens, int64_t n, int64_t activation, char *gate_up,
                   int64_t gate_up_t, char *h, int64_t h_t) {
    struct gated a = {gate_up, h, gate_up_t, h_t, n, (int)bf16, (int)activation};
    topcoat_parallel_for(tokens, 4096 / (n + 1) + 1, threads, forward_range, &a);
}

void EXPORT(gated_backward)(int64_t threads, int64_t bf16, int64_t tokens, int64_t n, int64_t activation,
                            char *gate_up, int64_t gate_up_t, char *dh, int64_t dh_t) {
    struct gated a = {gate_up, dh, gate_up_t, dh_t, n, (int)bf16, (int)activation};
    topcoat_parallel_for(tokens, 4096 / (n + 1) + 1, threads, backward_range, &a);
}
