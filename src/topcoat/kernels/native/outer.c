/* C (R, N) = Uᵀ X for a narrow U (T, R) and a wide X (T, N), both bf16, in float32: the gradient of a low-rank factor.

It costs what reading X costs, so X is read once, in rows as it lies: 64 rows at a time, 32 columns by 32 columns, into
tiles that are used at once. The sums, R numbers a column, wait in the second cache. */
#include "parallel.h"
#include "product.h"

enum { DEPTH = 2, ROWS = 32 * DEPTH, PART = 4 * SUMS, SOON = 128 }; /* SOON: columns that are asked for in advance */

struct plan { /* parts of 32 columns, those of a thread, groups of 32 ranks; bytes of a thread's scratch */
    int64_t panels, share, groups, bytes;
};

static struct plan plan_of(const struct outer *o) {
    struct plan plan = {.panels = up_to(o->n, 32) / 32, .groups = up_to(o->r, 32) / 32};
    plan.share = (plan.panels + o->threads - 1) / o->threads;
    plan.bytes = 4 * PART * plan.groups * plan.share + 2 * DEPTH * 2 * TILE * (plan.groups + 1);
    return plan;
}

int64_t EXPORT(outer_bytes)(const struct outer *o) { return plan_of(o).bytes * o->threads; }

/* The sums of the columns of panels begin .. end, all rows. */
static void add_up(const struct outer *o, const struct plan *plan, int64_t begin, int64_t end, float *sums, bf16 *left) {
    bf16 *right = left + DEPTH * 2 * TILE * plan->groups;
    struct matrix u = {o->u, o->u_row, o->t, o->r}, x = {o->x + 32 * begin, o->x_row, o->t, least(o->n, 32 * end) - 32 * begin};
    for (int64_t t = 0; t < o->t; t += ROWS) {
        for (int64_t k = 0; k < DEPTH; k++) pack_left_transposed(&u, t + 32 * k, left + k * TILE, DEPTH * TILE);
        for (int64_t panel = 0; panel < end - begin; panel++) {
            int64_t column = 32 * panel, next = column + SOON;
            struct matrix here = {x.first + column, x.stride, x.rows, least(32, x.width - column)};
            if (next < x.width) {
                struct matrix soon = {x.first + next, x.stride, x.rows, 1};
                ask_for(&soon, t, ROWS);
            } else {
                struct matrix soon = {x.first + next - up_to(x.width, 32), x.stride, x.rows, 1};
                ask_for(&soon, t + ROWS, ROWS);
            }
            for (int64_t k = 0; k < DEPTH; k++) pack_right(&here, t + 32 * k, right + k * 2 * TILE);
            for (int64_t g = 0; g < plan->groups; g++) {
                struct pair a = {left + g * 2 * DEPTH * TILE, DEPTH * TILE, TILE}, b = {right, TILE, 2 * TILE};
                struct sums c = {sums + PART * (panel * plan->groups + g), 512, 16, 32};
                if (t) multiply(DEPTH, a, b, c, FROM_SUMS, NULL);
                else multiply(DEPTH, a, b, c, FROM_ZERO, NULL);
            }
        }
    }
}

static void put(const struct outer *o, const struct plan *plan, int64_t begin, int64_t end, const float *sums) {
    for (int64_t panel = begin; panel < end; panel++)
        for (int64_t r = 0; r < o->r; r++) {
            const float *from = sums + PART * ((panel - begin) * plan->groups + r / 32) + 32 * (r % 32);
            for (int64_t j = 0; j < least(32, o->n - 32 * panel); j += 16)
                store(o->c + r * o->c_row + 32 * panel, j, o->n - 32 * panel, (vf)_mm512_load_ps(from + j), 0);
        }
}

/* The same with columns as rows: 16 x 16 sums change places at once. */
static void put_transposed(const struct outer *o, const struct plan *plan, int64_t begin, int64_t end,
                           const float *sums) {
    for (int64_t panel = begin; panel < end; panel++)
        for (int64_t r = 0; r < o->r; r += 16) {
            const float *from = sums + PART * ((panel - begin) * plan->groups + r / 32) + 32 * (r % 32);
            for (int64_t j = 0; j < least(32, o->n - 32 * panel); j += 16) {
                __m512i rows[16];
                for (int i = 0; i < 16; i++) rows[i] = (__m512i)((vf)_mm512_load_ps(from + 32 * i + j) * o->scale);
                transpose(rows);
                float *to = o->c + (32 * panel + j) * o->c_row;
                for (int64_t i = 0; i < least(16, o->n - 32 * panel - j); i++)
                    store(to + i * o->c_row, r, o->r, (vf)rows[i], 0);
            }
        }
}

static void share(int64_t first, int64_t last, void *arg) {
    const struct outer *o = arg;
    struct plan plan = plan_of(o);
    struct tile_state before;
    tiles_begin(&before);
    for (int64_t i = first; i < last; i++) {
        float *sums = (float *)(o->scratch + i * plan.bytes);
        int64_t begin = least(plan.panels, i * plan.share), end = least(plan.panels, begin + plan.share);
        if (begin == end) continue;
        add_up(o, &plan, begin, end, sums, (bf16 *)(sums + PART * plan.groups * plan.share));
        if (o->transposed) put_transposed(o, &plan, begin, end, sums);
        else put(o, &plan, begin, end, sums);
    }
    tiles_end(&before);
}

void EXPORT(outer)(const struct outer *o) { topcoat_parallel_for(o->threads, 1, o->threads, share, (void *)o); }
