/* Of each block of weights, the centre around which its codes tell the most; centre_search.py has the definition, and
   the same bits. Sixteen candidates are tried at a time, a lane each: every weight of the block passes all of them. */
#include "parallel.h"
#include "simd.h"

enum { MOST_BORDERS = 15 };

struct search {
    const float *values, *median, *reach, *factors, *borders;
    const int64_t *told; /* of n weights with one code, n log2 n in whole numbers */
    float *out;
    int64_t blocks, size, last_size, candidates;
};

/* Candidate k: zero, and then the factors in their order. The product goes through double: nothing fuses it. */
INLINE float candidate(const struct search *s, int64_t block, int64_t k) {
    if (k == 0) return 0;
    return (float)((double)s->factors[k - 1] * (double)s->reach[block]) + s->median[block];
}

INLINE void blocks(int64_t begin, int64_t end, const struct search *s, const int borders) {
    for (int64_t b = begin; b < end; b++) {
        const float *x = s->values + b * s->size;
        int64_t n = b == s->blocks - 1 ? s->last_size : s->size, least = INT64_MAX;
        float low = x[0], high = x[0], best = 0;
        for (int64_t i = 1; i < n; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
        for (int64_t first = 0; first < s->candidates; first += W) {
            vf centre;
            for (int j = 0; j < W; j++) centre[j] = candidate(s, b, first + j < s->candidates ? first + j : 0);
            vf down = centre - low, up = high - centre, scale = pick(down > up, down, up);
            vf unit = 1.0f / pick(scale > 1e-38f, scale, splat(1e-38f));
            vi above[MOST_BORDERS] = {{0}};
            for (int64_t i = 0; i < n; i++) {
                vf at = (x[i] - centre) * unit;
                for (int j = 0; j < borders; j++) above[j] -= at > s->borders[j];
            }
            for (int lane = 0; lane < W && first + lane < s->candidates; lane++) {
                int64_t told = s->told[n - above[0][lane]] + s->told[above[borders - 1][lane]];
                for (int j = 1; j < borders; j++) told += s->told[above[j - 1][lane] - above[j][lane]];
                if (told < least) least = told, best = centre[lane];
            }
        }
        s->out[b] = best;
    }
}

static void three(int64_t begin, int64_t end, void *arg) { blocks(begin, end, arg, 3); }
static void seven(int64_t begin, int64_t end, void *arg) { blocks(begin, end, arg, 7); }
static void fifteen(int64_t begin, int64_t end, void *arg) { blocks(begin, end, arg, 15); }

void EXPORT(best_centres)(int64_t threads, const float *values, const float *median, const float *reach,
                          const float *factors, const float *borders, const int64_t *told, float *out, int64_t count,
                          int64_t size, int64_t last_size, int64_t candidates, int64_t border_count) {
    struct search s = {values, median, reach, factors, borders, told, out, count, size, last_size, candidates};
    topcoat_parallel_for(count, 16, threads, border_count == 3 ? three : border_count == 7 ? seven : fifteen, &s);
}
