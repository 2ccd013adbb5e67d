/* A projection of a block (projection.py), forward or backward, as one call: the products of product.c and outer.c one
   after the other. Called one by one from Python they cost a tenth of a step: after every product the second cache
   holds tiles, and the interpreter comes back to nothing but misses. */
#include "parallel.h"
#include "product.h"

struct stack { /* adapters side by side, on rows `first` .. first + rows of the output, their ranks in this order */
    bf16 *a, *b; /* A (R, I), B (O, R) with the scales in it */
    int64_t in, out, rank, count;
    const int64_t *first, *rows, *ranks;
    const int64_t *grad_a, *grad_b; /* where in the gradients an adapter's A (r, I) and B (rows, r) go; -1: nowhere */
    const float *scale;
    const float *const *master_a, *const *master_b; /* what trains: A (r, I) and B (rows, r) of each adapter */
};

struct ahead { /* forward: y = x Wᵀ + h Bᵀ + add, then the gate */
    const struct stack *stack;
    int64_t threads, tokens;
    const bf16 *w;
    int64_t w_row;
    const bf16 *x;
    bf16 *y, *h; /* h (T, R) is written, or read where it is known; NULL: the weight alone */
    int64_t h_known;
    const bf16 *add; /* (T, O), or (O,) with add_row 0, or NULL */
    int64_t add_row;
    bf16 *beside;
    int64_t gating, activation;
    char *scratch;
};

struct back { /* backward: u = g B, dx = g W + u A, then the gate's backward; dA = uᵀ x, dB = scale gᵀ h */
    const struct stack *stack;
    int64_t threads, tokens;
    const bf16 *w;
    int64_t w_row;
    const bf16 *g;
    bf16 *dx, *u; /* dx may be NULL */
    const bf16 *x, *h;
    float *grads;
    bf16 *beside;
    int64_t gating, activation;
    char *scratch;
};

/* Rows begin .. end of B where they are an adapter's, or of A after them: a number is rounded, scaled and rounded. */
static void fill(int64_t begin, int64_t end, void *arg) {
    const struct stack *s = arg;
    int64_t row = 0, rank = 0;
    for (int64_t i = 0; i < s->count; rank += s->ranks[i], i++) {
        int64_t r = s->ranks[i], from = most(begin, row), to = least(end, row + r);
        for (int64_t k = from; k < to; k++)
            for (int64_t j = 0; j < s->in; j += W) {
                vf master = load(s->master_a[i] + (k - row) * s->in, j, s->in, 0);
                store(s->a + (rank + k - row) * s->in, j, s->in, master, 1);
            }
        row += r, from = most(begin, row), to = least(end, row + s->rows[i]);
        for (int64_t k = from; k < to; k++)
            for (int64_t j = 0; j < r; j += W) {
                vf master = from_bf16(to_bf16(load(s->master_b[i] + (k - row) * r, j, r, 0)));
                store(s->b + (s->first[i] + k - row) * s->rank + rank, j, r, master * s->scale[i], 1);
            }
        row += s->rows[i];
    }
}

/* A and B anew from what trains. */
void EXPORT(projection_fill)(const struct stack *s, int64_t threads) {
    int64_t rows = s->rank;
    for (int64_t i = 0; i < s->count; i++) rows += s->rows[i];
    topcoat_parallel_for(rows, 64, threads, fill, (void *)s);
}

static char *on_a_line(char *scratch) { return (char *)(((uintptr_t)scratch + 63) / 64 * 64); }

static struct product inner_of(const struct stack *s, const struct ahead *c) {
    return (struct product){.c = c->h, .c_row = s->rank, .a = c->x, .a_row = s->in, .b = s->a, .b_row = s->in,
                            .m = c->tokens, .n = s->rank, .k = s->in, .transposed = 1, .threads = c->threads};
}

static struct product forward_of(const struct stack *s, const struct ahead *c) {
    return (struct product){.c = c->y, .c_row = s->out, .a = c->x, .a_row = s->in, .b = c->w, .b_row = c->w_row,
                            .e = c->h, .e_row = s->rank, .f = s->b, .f_row = s->rank, .d = c->add, .d_row = c->add_row,
                            .g = c->beside, .g_row = s->out / 2, .m = c->tokens, .n = s->out, .k = s->in,
                            .r = c->h ? s->rank : 0, .transposed = 1, .threads = c->threads, .gating = c->gating,
                            .activation = c->activation};
}

/* What adapter i reads of g is its own rows: u[:, ranks] = g[:, rows] B[rows, ranks]. */
static struct product up_of(const struct stack *s, const struct back *c, int64_t i, int64_t rank) {
    return (struct product){.c = c->u + rank, .c_row = s->rank, .a = c->g + s->first[i], .a_row = s->out,
                            .b = s->b + s->first[i] * s->rank + rank, .b_row = s->rank, .m = c->tokens,
                            .n = s->ranks[i], .k = s->rows[i], .threads = c->threads};
}

static struct product backward_of(const struct stack *s, const struct back *c) {
    return (struct product){.c = c->dx, .c_row = s->in, .a = c->g, .a_row = s->out, .b = c->w, .b_row = c->w_row,
                            .e = c->u, .e_row = s->rank, .f = s->a, .f_row = s->in, .g = c->beside,
                            .g_row = 2 * s->in, .m = c->tokens, .n = s->in, .k = s->out, .r = s->rank,
                            .threads = c->threads, .gating = c->gating, .activation = c->activation};
}

/* dA of `ranks` ranks from `rank` on. */
static struct outer down_gradient_of(const struct stack *s, const struct back *c, int64_t rank, int64_t ranks,
                                     float *to) {
    return (struct outer){.c = to, .c_row = s->in, .u = c->u + rank, .u_row = s->rank, .x = c->x, .x_row = s->in,
                          .t = c->tokens, .r = ranks, .n = s->in, .threads = c->threads};
}

static struct outer up_gradient_of(const struct stack *s, const struct back *c, int64_t i, int64_t rank) {
    return (struct outer){.c = c->grads + s->grad_b[i], .c_row = s->ranks[i], .u = c->h + rank, .u_row = s->rank,
                          .x = c->g + s->first[i], .x_row = s->out, .t = c->tokens, .r = s->ranks[i], .n = s->rows[i],
                          .transposed = 1, .scale = s->scale[i], .threads = c->threads};
}

static int64_t more(int64_t bytes, struct product p) { return most(bytes, EXPORT(product_bytes)(&p)); }
static int64_t more_outer(int64_t bytes, struct outer o) { return most(bytes, EXPORT(outer_bytes)(&o)); }

/* What either way takes at most. */
int64_t EXPORT(projection_bytes)(const struct stack *s, int64_t threads, int64_t tokens) {
    bf16 some;
    struct ahead ahead = {.threads = threads, .tokens = tokens, .h = s->rank ? &some : NULL};
    struct back back = {.threads = threads, .tokens = tokens};
    int64_t bytes = more(more(0, forward_of(s, &ahead)), backward_of(s, &back));
    if (s->rank) {
        bytes = more_outer(more(bytes, inner_of(s, &ahead)), down_gradient_of(s, &back, 0, s->rank, NULL));
        for (int64_t i = 0; i < s->count; i++) {
            bytes = more_outer(more(bytes, up_of(s, &back, i, 0)), up_gradient_of(s, &back, i, 0));
            bytes = more_outer(bytes, down_gradient_of(s, &back, 0, s->ranks[i], NULL));
        }
    }
    return bytes + 64;
}

static void multiply_all(struct product p, char *scratch) {
    p.scratch = on_a_line(scratch);
    EXPORT(product)(&p);
}

static void outer_sum(struct outer o, char *scratch) {
    o.scratch = on_a_line(scratch);
    EXPORT(outer)(&o);
}

void EXPORT(projection_forward)(const struct ahead *c) {
    const struct stack *s = c->stack;
    if (c->h && !c->h_known) multiply_all(inner_of(s, c), c->scratch);
    multiply_all(forward_of(s, c), c->scratch);
}

void EXPORT(projection_backward)(const struct back *c) {
    const struct stack *s = c->stack;
    int64_t rank = 0, every_a = 1;
    for (int64_t i = 0; i < s->count; rank += s->ranks[i], i++) {
        multiply_all(up_of(s, c, i, rank), c->scratch);
        every_a &= s->grad_a[i] >= 0;
    }
    if (c->dx) multiply_all(backward_of(s, c), c->scratch);
    rank = 0;
    if (s->count && every_a) outer_sum(down_gradient_of(s, c, 0, s->rank, c->grads + s->grad_a[0]), c->scratch);
    for (int64_t i = 0; i < s->count; rank += s->ranks[i], i++) {
        if (s->grad_a[i] >= 0 && !every_a)
            outer_sum(down_gradient_of(s, c, rank, s->ranks[i], c->grads + s->grad_a[i]), c->scratch);
        if (s->grad_b[i] >= 0) outer_sum(up_gradient_of(s, c, i, rank), c->scratch);
    }
}
