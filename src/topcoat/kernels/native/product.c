/* C (M, N) = A (M, K) B (K, N) + E (M, R) F (R, N) + D (M, N) in bf16 with float32 sums, on AMX tiles.

A block of B's columns is packed into right tiles once and stays in the second cache; strips of 32 rows of A pass by it
and stay in the first. The low-rank term E F rides along as a few more steps of the same sums: it reads and writes no C.
While the tiles of one 32 x 32 part of C multiply, the vector units round and store the part before it, and ask for the
rows of A and the columns of B that come next. A long K goes in chunks, whose sums wait in float32. */
#include "gated.h"
#include "parallel.h"
#include "product.h"

enum { STRIP = 32, PART = 4 * SUMS };
enum { BLOCK = 600 << 10 };          /* numbers: with a strip or two, what a second cache of 2 MiB holds */
enum { LONG = 96, CHUNK = 64 };      /* steps of 32 in K: above LONG, in equal chunks of at most CHUNK */

struct plan { /* how a product is shared out; then the sizes of a thread's scratch, in bf16 */
    int64_t steps, chunk, extra_steps, block, down, across;
    int64_t right, left, extra, sums;
};

/* Under GATE the columns of the sums are 16 of the gate, the 16 of up that go with them, and so on: where 16 lie in B. */
INLINE int64_t place_of(const struct product *p, int64_t column) {
    return p->gating == GATE ? column / 32 * 16 + (column / 16 % 2 ? p->n / 2 : 0) : column;
}

static struct plan plan_of(const struct product *p) {
    struct plan plan;
    plan.steps = up_to(p->k, 32) / 32;
    int64_t chunks = plan.steps > LONG ? (plan.steps + CHUNK - 1) / CHUNK : 1;
    plan.chunk = (plan.steps + chunks - 1) / chunks;
    plan.extra_steps = up_to(p->r, 32) / 32;
    int64_t columns = up_to(p->n, STRIP), strips = up_to(p->m, STRIP) / STRIP;
    plan.across = most(1, least(p->threads, columns / 128)); /* each thread packs what it reads: few share a block */
    plan.down = most(1, least(p->threads / plan.across, strips));
    int64_t share = up_to((columns + plan.across - 1) / plan.across, STRIP);
    int64_t fits = most(STRIP, BLOCK / ((plan.chunk + plan.extra_steps) * 32) / STRIP * STRIP);
    int64_t blocks = (share + fits - 1) / fits;
    plan.block = up_to((share + blocks - 1) / blocks, STRIP);
    plan.right = plan.block / 16 * (plan.chunk + plan.extra_steps) * TILE;
    plan.left = 2 * plan.chunk * TILE;
    plan.extra = 2 * plan.extra_steps * TILE;
    int64_t waiting = plan.chunk < plan.steps ? (strips + plan.down - 1) / plan.down * (plan.block / STRIP) : 2;
    plan.sums = 2 * PART * waiting;
    return plan;
}

static int64_t bytes_of(const struct plan *plan) { return 2 * (plan->right + plan->left + plan->extra + plan->sums); }

int64_t EXPORT(product_bytes)(const struct product *p) {
    struct plan plan = plan_of(p);
    return plan.down * plan.across * bytes_of(&plan);
}

/* 32 columns, or where they part into two times 16, of rows r .. r + 31 as right tiles with neighbours side by side. */
INLINE void right_neighbours(const struct matrix *m, int64_t r, int64_t first, int64_t second, bf16 *to, int64_t step,
                             const int whole) {
    for (int i = 0; i < 16; i++, to += 32) {
        const bf16 *even = row_of(m, r + 2 * i), *odd = row_of(m, r + 2 * i + 1);
        __m512i a = row32(even, first, m->width, whole), b = row32(odd, first, m->width, whole);
        _mm512_store_si512(to, beside(a, b, 0));
        if (second == first + 16) {
            _mm512_store_si512(to + step, beside(a, b, 1));
        } else {
            a = row32(even, second, m->width, 0), b = row32(odd, second, m->width, 0);
            _mm512_store_si512(to + step, beside(a, b, 0));
        }
    }
}

/* Part of b (K, N), or of b (N, K), as right tiles: `depth` rows of K from k on, and `columns` of N from `first` on. */
static void pack_block(const struct product *p, const bf16 *b, int64_t row, int64_t k, int64_t depth, int64_t first,
                       int64_t columns, bf16 *to, int64_t step) {
    if (p->transposed) {
        struct matrix m = {b + k, row, p->n, depth};
        for (int64_t j = 0; j < columns; j += 16) pack_right_transposed(&m, place_of(p, first + j), to + j / 16 * step);
        return;
    }
    struct matrix m = {b + k * row, row, depth, p->n}, next = {m.first + first, row, depth, columns};
    for (int64_t r = 0; r < depth; r += 32, to += TILE) {
        ask_for(&next, r + 32, 32);
        for (int64_t j = 0; j < columns; j += 32) {
            int64_t one = place_of(p, first + j), two = place_of(p, first + j + 16);
            bf16 *here = to + j / 16 * step;
            if (r + 32 <= depth && one + 32 <= p->n) right_neighbours(&m, r, one, two, here, step, 1);
            else right_neighbours(&m, r, one, two, here, step, 0);
        }
    }
}

struct left { /* 32 rows as left tiles: where they are, how far the other 16 and the next 32 columns; bytes a row */
    const bf16 *first;
    int64_t second, step, row;
};

/* Rows r .. r + 31: where they lie, or packed where the matrix ends before the tiles do. */
static struct left strip_of(const struct matrix *m, int64_t r, bf16 *to) {
    if (r + STRIP <= m->rows && m->width % 32 == 0)
        return (struct left){m->first + r * m->stride, 16 * m->stride, 32, 2 * m->stride};
    int64_t half = up_to(m->width, 32) / 32 * TILE;
    pack_left(m, r, to), pack_left(m, r + 16, to + half);
    return (struct left){to, half, TILE, 64};
}

struct asked { /* memory that will be read soon: rows of cache lines */
    const char *row, *line;
    int64_t stride, bytes, rows;
};

static struct asked soon(const bf16 *first, int64_t stride, int64_t width, int64_t rows) {
    return (struct asked){(const char *)first, (const char *)first, 2 * stride, 2 * width, rows};
}

INLINE void ask(struct asked *s, int64_t lines) {
    for (; lines > 0 && s->rows > 0; lines--) {
        _mm_prefetch(s->line, _MM_HINT_T1);
        s->line += 64;
        if (s->line >= s->row + s->bytes) s->row += s->stride, s->line = s->row, s->rows--;
    }
}

struct part { /* 32 x 32 finished sums on their way to C, and the next of their rows */
    const float *sums;
    int64_t row, column, next, rows;
};

/* The row's next columns, which are put out when the tiles have come round: a store that misses is slow. */
INLINE void soon_written(const bf16 *to) { __builtin_prefetch(to, 1); }

/* A row of 32 sums out to C, D added. */
INLINE void put_plain(const struct product *p, int64_t row, int64_t column, vf low, vf high) {
    int64_t left = p->n - column;
    soon_written(p->c + row * p->c_row + column + 32);
    if (p->d) {
        const bf16 *d = p->d + row * p->d_row + column;
        _mm_prefetch((const char *)(d + 32), _MM_HINT_T0);
        low += load(d, 0, left, 1), high += left > 16 ? load(d, 16, left, 1) : (vf){0};
    }
    store32(p->c + row * p->c_row + column, 0, left, low, high);
}

INLINE vf as_stored(vf x) { return from_bf16(to_bf16(x)); }

INLINE void put_gated(const struct product *p, int64_t row, int64_t column, vf gate, vf up, const int activation) {
    int64_t at = column / 2, half = p->n / 2;
    bf16 *c = p->c + row * p->c_row + at;
    soon_written(c + 32), soon_written(c + half + 32), soon_written(p->g + row * p->g_row + at + 32);
    if (p->d) {
        const bf16 *d = p->d + row * p->d_row + at;
        gate += load(d, 0, W, 1), up += load(d + half, 0, W, 1);
    }
    vf slope;
    store(c, 0, W, gate, 1), store(c + half, 0, W, up, 1);
    store(p->g + row * p->g_row + at, 0, W, activate(as_stored(gate), &slope, activation, 1) * as_stored(up), 1);
}

INLINE void put_ungated(const struct product *p, int64_t row, int64_t column, vf low, vf high, const int activation) {
    for (int64_t at = column; at < least(column + 32, p->n); at += W, low = high) {
        bf16 *gate = p->g + row * p->g_row + at, *up = gate + p->n;
        int64_t left = p->n - at;
        soon_written(gate + 32), soon_written(up + 32), soon_written(p->c + row * p->c_row + at + 32);
        vf slope, value = activate(load(gate, 0, left, 1), &slope, activation, 1), u = load(up, 0, left, 1);
        store(gate, 0, left, low * u * slope, 1);
        store(up, 0, left, low * value, 1);
        store(p->c + row * p->c_row + at, 0, left, value * u, 1);
    }
}

#define FOR_EACH_ACTIVATION(put)                                                                                       \
    if (p->activation == SILU) put(p, row, part->column, low, high, SILU);                                             \
    else if (p->activation == GELU) put(p, row, part->column, low, high, GELU);                                        \
    else put(p, row, part->column, low, high, GELU_TANH);

/* The next n rows of finished sums out to where they belong, nothing added and all columns there: most products. */
INLINE void put_whole(const struct product *p, struct part *part, int64_t n) {
    int64_t end = least(part->next + n, part->rows);
    const float *from = part->sums + STRIP * part->next;
    bf16 *to = p->c + (part->row + part->next) * p->c_row + part->column;
    for (int64_t i = part->next; i < end; i++, from += STRIP, to += p->c_row) {
        soon_written(to + 32);
        store32(to, 0, 32, (vf)_mm512_load_ps(from), (vf)_mm512_load_ps(from + 16));
    }
    part->next = most(end, part->next);
}

/* The next n rows of finished sums out to where they belong. */
INLINE void put(const struct product *p, struct part *part, int64_t n) {
    if (p->gating == NONE && !p->d && part->column + STRIP <= p->n) {
        put_whole(p, part, n);
        return;
    }
    for (int64_t end = least(part->next + n, part->rows); part->next < end; part->next++) {
        const float *from = part->sums + STRIP * part->next;
        vf low = (vf)_mm512_load_ps(from), high = (vf)_mm512_load_ps(from + 16);
        int64_t row = part->row + part->next;
        if (p->gating == NONE) {
            put_plain(p, row, part->column, low, high);
        } else if (p->gating == GATE) {
            FOR_EACH_ACTIVATION(put_gated)
        } else {
            FOR_EACH_ACTIVATION(put_ungated)
        }
    }
}

struct meanwhile { /* what the vector units do in each step of the tiles */
    struct part part;
    struct asked rows;
    int64_t put, ask;
};

INLINE void add_steps(const struct product *p, int64_t n, struct left a, const bf16 *b0, int64_t step,
                      struct meanwhile *other) {
    const bf16 *a0 = a.first, *a1 = a0 + a.second, *b1 = b0 + step;
    for (int64_t k = 0; k < n; k++, a0 += a.step, a1 += a.step, b0 += TILE, b1 += TILE) {
        _tile_loadd(4, a0, a.row); _tile_loadd(6, b0, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1, a.row);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        put(p, &other->part, other->put);
        ask(&other->rows, other->ask);
    }
}

struct share { /* what one thread computes, and its scratch */
    int64_t row, rows, column, columns;
    bf16 *right, *left, *extra;
    float *sums;
};

/* One block of columns by one chunk of K, whose right tiles are packed: all strips of rows pass by. */
static void multiply_block(const struct product *p, const struct plan *plan, const struct share *s, int64_t column,
                           int64_t columns, int64_t chunk, struct meanwhile *other) {
    int64_t k = 32 * plan->chunk * chunk, depth = least(32 * plan->chunk, p->k - k), steps = up_to(depth, 32) / 32;
    int64_t step = (plan->chunk + plan->extra_steps) * TILE, panels = columns / STRIP;
    int last = k + depth == p->k, waits = plan->chunk < plan->steps, turn = 0;
    struct matrix a = {p->a + k, p->a_row, p->m, depth}, e = {p->e, p->e_row, p->m, p->r};
    other->put = STRIP / steps + 1, other->ask = (STRIP - 1) / panels + 1;
    for (int64_t row = s->row; row < s->row + s->rows; row += STRIP) {
        struct left strip = strip_of(&a, row, s->left), low = {0};
        if (last && p->r) low = strip_of(&e, row, s->extra);
        int64_t next = row + STRIP;
        other->rows = soon(a.first + next * a.stride, a.stride, depth, least(STRIP, s->row + s->rows - next));
        for (int64_t j = 0; j < panels; j++, turn ^= 1) {
            const bf16 *right = s->right + 2 * j * step;
            float *sums = s->sums + PART * (waits ? (row - s->row) / STRIP * (plan->block / STRIP) + j : turn);
            __asm__ volatile("" ::: "memory"); /* the tile intrinsics do not say that they read and write memory */
            if (chunk) {
                _tile_loadd(0, sums, 128); _tile_loadd(1, sums + 16, 128);
                _tile_loadd(2, sums + 512, 128); _tile_loadd(3, sums + 528, 128);
            } else {
                _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            }
            add_steps(p, steps, strip, right, step, other);
            if (last && p->r) add_steps(p, plan->extra_steps, low, right + plan->chunk * TILE, step, other);
            _tile_stored(0, sums, 128); _tile_stored(1, sums + 16, 128);
            _tile_stored(2, sums + 512, 128); _tile_stored(3, sums + 528, 128);
            __asm__ volatile("" ::: "memory");
            put(p, &other->part, STRIP);
            if (last) other->part = (struct part){sums, row, column + STRIP * j, 0, least(STRIP, p->m - row)};
        }
    }
    put(p, &other->part, STRIP);
}

static void compute(const struct product *p, const struct plan *plan, const struct share *s) {
    int64_t step = (plan->chunk + plan->extra_steps) * TILE, chunks = (plan->steps + plan->chunk - 1) / plan->chunk;
    struct meanwhile other = {0};
    for (int64_t c = s->column; c < s->column + s->columns; c += plan->block) {
        int64_t columns = least(plan->block, s->column + s->columns - c);
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            int64_t k = 32 * plan->chunk * chunk, depth = least(32 * plan->chunk, p->k - k);
            pack_block(p, p->b, p->b_row, k, depth, c, columns, s->right, step);
            if (chunk == chunks - 1 && p->r)
                pack_block(p, p->f, p->f_row, 0, p->r, c, columns, s->right + plan->chunk * TILE, step);
            multiply_block(p, plan, s, c, columns, chunk, &other);
        }
    }
}

static void shares(int64_t begin, int64_t end, void *arg) {
    const struct product *p = arg;
    struct plan plan = plan_of(p);
    struct tile_state before;
    tiles_begin(&before);
    int64_t strips = up_to(p->m, STRIP) / STRIP, panels = up_to(p->n, STRIP) / STRIP;
    for (int64_t i = begin; i < end; i++) {
        int64_t y = i / plan.across, x = i % plan.across;
        int64_t row = strips * y / plan.down, column = panels * x / plan.across;
        struct share s = {.row = STRIP * row, .column = STRIP * column};
        s.rows = STRIP * (strips * (y + 1) / plan.down - row);
        s.columns = STRIP * (panels * (x + 1) / plan.across - column);
        s.right = (bf16 *)(p->scratch + i * bytes_of(&plan));
        s.left = s.right + plan.right, s.extra = s.left + plan.left, s.sums = (float *)(s.extra + plan.extra);
        compute(p, &plan, &s);
    }
    tiles_end(&before);
}

void EXPORT(product)(const struct product *p) {
    struct plan plan = plan_of(p);
    topcoat_parallel_for(plan.down * plan.across, 1, p->threads, shares, (void *)p);
}
