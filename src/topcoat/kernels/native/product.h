/* Products on tiles as other sources call them: product.c and outer.c say how they are formed. */
#pragma once
#include "tiles.h"

struct product { /* C (M, N) = A (M, K) B (K, N) + E (M, R) F (R, N) + D (M, N); rows apart by c_row, ... numbers */
    bf16 *c;
    const bf16 *a, *b, *e, *f, *d;
    bf16 *g;
    int64_t c_row, a_row, b_row, e_row, f_row, d_row, g_row;
    int64_t m, n, k, r;
    int64_t transposed; /* b is (N, K) and f is (N, R) */
    int64_t threads, gating, activation;
    char *scratch;
};

/* GATE: C = (gate | up) (M, 2 F), and G (M, F) = act(gate) * up beside it. UNGATE: the sums are dh, G = (gate | up)
   becomes (dgate | dup), and C (M, F) = act(gate) * up. */
enum gating { NONE, GATE, UNGATE };

struct outer { /* C (R, N) = Uᵀ X, or `transposed` C (N, R) = scale Xᵀ U, of U (T, R) and X (T, N) */
    float *c;
    const bf16 *u, *x;
    int64_t t, r, n;
    int64_t c_row, u_row, x_row, transposed, threads;
    float scale;
    char *scratch;
};

int64_t EXPORT(product_bytes)(const struct product *p);
void EXPORT(product)(const struct product *p);
int64_t EXPORT(outer_bytes)(const struct outer *o);
void EXPORT(outer)(const struct outer *o);
