/* C (R, N) = Uᵀ X for a narrow U (T, R) and a wide X (T, N), both bf16, in float32: the gradient of a low-rank factor.

It costs what reading X costs, so X is read once, in rows as it lies: 128 rows at a time, 32 columns by 32 columns, into
tiles that are used at once. Up to 16 ranks are one tile, which goes with 64 columns. The sums, R numbers a column, wait
in the second cache. */
#include "parallel.h"
#include "product.h"

enum { DEPTH = 4, ROWS = 32 * DEPTH, PART = 4 * SUMS, SOON = 128 }; /* SOON: columns that are asked for in advance */

struct plan { /* columns of a panel, panels, those of a thread, groups of 32 ranks; bytes of a thread's scratch */
    int64_t columns, panels, share, groups, bytes;
};

static struct plan plan_of(const struct outer *o) {
    struct plan plan = {.columns = o->r > 16 ? 32 : 64, .groups = up_to(o->r, 32) / 32};
    plan.panels = (o->n + plan.columns - 1) / plan.columns;
    plan.share = (plan.panels + o->threads - 1) / o->threads;
    plan.bytes = 4 * PART * plan.groups * plan.share + 2 * DEPTH * TILE * (2 * plan.groups + plan.columns / 16);
    return plan;
}

int64_t EXPORT(outer_bytes)(const struct outer *o) { return plan_of(o).bytes * o->threads; }

/* One left tile by four right tiles, DEPTH times, onto sums of 16 rows and 64 columns. */
INLINE void multiply_wide(const bf16 *left, const bf16 *right, float *sums, int from_zero) {
    __asm__ volatile("" ::: "memory"); /* gcc's tile intrinsics do not say that they read and write memory */
    if (from_zero) {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 256); _tile_loadd(1, sums + 16, 256);
        _tile_loadd(2, sums + 32, 256); _tile_loadd(3, sums + 48, 256);
    }
    for (int64_t k = 0; k < DEPTH; k++, left += TILE, right += 4 * TILE) {
        _tile_loadd(4, left, 64); _tile_loadd(5, right, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, right + TILE, 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, right + 2 * TILE, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, right + 3 * TILE, 64);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, sums, 256); _tile_stored(1, sums + 16, 256);
    _tile_stored(2, sums + 32, 256); _tile_stored(3, sums + 48, 256);
    __asm__ volatile("" ::: "memory");
}

/* The sums of the columns of panels begin .. end, all rows. */
static void add_up(const struct outer *o, const struct plan *plan, int64_t begin, int64_t end, float *sums, bf16 *left) {
    const int64_t columns = plan->columns, tiles = columns / 16, first = columns * begin;
    bf16 *right = left + DEPTH * 2 * TILE * plan->groups;
    struct matrix u = {o->u, o->u_row, o->t, o->r}, x = {o->x + first, o->x_row, o->t, least(o->n, columns * end) - first};
    for (int64_t t = 0; t < o->t; t += ROWS) {
        for (int64_t k = 0; k < DEPTH; k++) pack_left_transposed(&u, t + 32 * k, left + k * TILE, DEPTH * TILE);
        for (int64_t panel = 0; panel < end - begin; panel++) {
            int64_t column = columns * panel, next = column + SOON;
            struct matrix here = {x.first + column, x.stride, x.rows, least(columns, x.width - column)};
            int ends = next >= x.width; /* the first columns of the rows that come next */
            struct matrix soon = {x.first + next - (ends ? up_to(x.width, columns) : 0), x.stride, x.rows, columns};
            ask_for(&soon, t + (ends ? ROWS : 0), ROWS);
            for (int64_t k = 0; k < DEPTH; k++) pack_right(&here, t + 32 * k, right + k * tiles * TILE);
            float *to = sums + PART * panel * plan->groups;
            if (tiles == 4) {
                multiply_wide(left, right, to, !t);
                continue;
            }
            for (int64_t g = 0; g < plan->groups; g++) {
                struct pair a = {left + g * 2 * DEPTH * TILE, DEPTH * TILE, TILE}, b = {right, TILE, 2 * TILE};
                struct sums c = {to + PART * g, 512, 16, 32};
                if (t) multiply(DEPTH, a, b, c, FROM_SUMS, NULL);
                else multiply(DEPTH, a, b, c, FROM_ZERO, NULL);
            }
        }
    }
}

static void put(const struct outer *o, const struct plan *plan, int64_t begin, int64_t end, const float *sums) {
    for (int64_t panel = begin; panel < end; panel++)
        for (int64_t r = 0; r < o->r; r++) {
            int64_t column = plan->columns * panel, left = o->n - column;
            const float *from = sums + PART * ((panel - begin) * plan->groups + r / 32) + plan->columns * (r % 32);
            for (int64_t j = 0; j < least(plan->columns, left); j += 16)
                store(o->c + r * o->c_row + column, j, left, (vf)_mm512_load_ps(from + j), 0);
        }
}

/* The same with columns as rows: 16 x 16 sums change places at once. */
static void put_transposed(const struct outer *o, const struct plan *plan, int64_t begin, int64_t end,
                           const float *sums) {
    for (int64_t panel = begin; panel < end; panel++)
        for (int64_t r = 0; r < o->r; r += 16) {
            int64_t column = plan->columns * panel, left = o->n - column;
            const float *from = sums + PART * ((panel - begin) * plan->groups + r / 32) + plan->columns * (r % 32);
            for (int64_t j = 0; j < least(plan->columns, left); j += 16) {
                __m512i rows[16];
                for (int i = 0; i < 16; i++)
                    rows[i] = (__m512i)((vf)_mm512_load_ps(from + plan->columns * i + j) * o->scale);
                transpose(rows);
                float *to = o->c + (column + j) * o->c_row;
                for (int64_t i = 0; i < least(16, left - j); i++)
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
