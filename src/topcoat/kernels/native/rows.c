/* Lines of JSON -> their texts and what is around them; pieces of texts put together; 64 bits of BLAKE2b.

data/plain_lines.py says what rows are plain and what becomes of the others: this file only has to be sure of a line,
or leave it. A line is read as RFC 8259 has it; text is UTF-8 without surrogates. */
#include "utf8.h"

enum { DEEPEST = 6, LONGEST_NAME = 64, MOST_DIGITS = 15 };
enum { LEFT_ALONE = 0, PLAIN = 1, BLANK = 2 }; /* what a line is */
enum { TEXT = 1, NUMBER = 2 };                 /* what stands for a value in a layout */

struct head { /* a text that is to be wary of, or how a longer one begins */
    uint8_t size, bytes[63];
};

struct reader {
    const uint8_t *p, *end;
    uint8_t *layout, *text; /* where the next byte goes */
    int64_t n;              /* texts so far */
    const uint8_t *texts;   /* where all begin */
    int64_t *starts, *sizes;
    int32_t *left, *right; /* white space at either end, in bytes */
    uint8_t *wary;
    const uint8_t *firsts;
    const struct head *heads;
    int64_t n_heads;
};

INLINE void blanks(struct reader *r) {
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\t' || *r->p == '\r')) r->p++;
}

INLINE int hex4(const uint8_t *p, uint32_t *code) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++) {
        uint8_t c = p[i], low = c | 32;
        if ((uint8_t)(c - '0') < 10) value = value << 4 | (uint32_t)(c - '0');
        else if ((uint8_t)(low - 'a') < 6) value = value << 4 | (uint32_t)(low - 'a' + 10);
        else return 0;
    }
    *code = value;
    return 1;
}

/* The character behind a backslash, appended; 0 where there is none. */
static int escaped(struct reader *r) {
    static const char NAMES[] = "\"\\/bfnrt", VALUES[] = "\"\\/\b\f\n\r\t";
    if (r->p + 1 >= r->end) return 0;
    const char *name = memchr(NAMES, r->p[1], 8);
    if (name) {
        *r->text++ = (uint8_t)VALUES[name - NAMES];
        r->p += 2;
        return 1;
    }
    uint32_t code, low;
    if (r->p[1] != 'u' || r->end - r->p < 6 || !hex4(r->p + 2, &code)) return 0;
    r->p += 6;
    if (code >= 0xD800 && code < 0xE000) {
        if (code >= 0xDC00 || r->end - r->p < 6 || r->p[0] != '\\' || r->p[1] != 'u' || !hex4(r->p + 2, &low)) return 0;
        if (low < 0xDC00 || low >= 0xE000) return 0;
        code = 0x10000 + ((code & 0x3FF) << 10) + (low & 0x3FF);
        r->p += 6;
    }
    uint8_t *out = r->text;
    if (code < 0x80) *out++ = (uint8_t)code;
    else {
        int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
        *out++ = (uint8_t)((0xFF00 >> (more + 1) & 0xFF) | code >> 6 * more);
        while (more--) *out++ = (uint8_t)(0x80 | (code >> 6 * more & 0x3F));
    }
    r->text = out;
    return 1;
}

/* One character of more than a byte, appended; 0 where it is none of UTF-8. */
static int wide(struct reader *r) {
    const uint8_t *p = r->p;
    int64_t left = r->end - p;
    int size = p[0] >= 0xC2 && p[0] < 0xE0 ? 2 : p[0] >= 0xE0 && p[0] < 0xF0 ? 3 : p[0] >= 0xF0 && p[0] < 0xF5 ? 4 : 0;
    if (!size || left < size) return 0;
    for (int i = 1; i < size; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F)) return 0; /* too long a form; a surrogate */
    if ((p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] > 0x8F)) return 0; /* too long; past the last one */
    memcpy(r->text, p, (size_t)size);
    r->text += size;
    r->p += size;
    return 1;
}

/* The string whose quote is at r->p, appended to the texts; 0 where it is none. */
static int unquoted(struct reader *r) {
    r->p++;
    for (;;) {
        while (r->end - r->p >= 8) {
            uint64_t x = load8(r->p), ones = 0x0101010101010101u, high = 0x8080808080808080u;
            uint64_t quote = x ^ (ones * '"'), slash = x ^ (ones * '\\');
            uint64_t stop = ((quote - ones) & ~quote) | ((slash - ones) & ~slash) | ((x - ones * 0x20) & ~x) | x;
            memcpy(r->text, &x, 8);
            if (stop &= high) { /* the lowest marked byte is surely one: borrows only go up */
                int64_t n = __builtin_ctzll(stop) >> 3;
                r->p += n, r->text += n;
                break;
            }
            r->p += 8, r->text += 8;
        }
        if (r->p == r->end) return 0;
        uint8_t c = *r->p;
        if (c == '"') {
            r->p++;
            return 1;
        }
        if (c == '\\' ? !escaped(r) : c >= 0x80 ? !wide(r) : c < 0x20) return 0;
        if (c != '\\' && c < 0x80) *r->text++ = c, r->p++;
    }
}

/* Whether a text to be wary of stands in [p, end), or may begin there and end behind, with or without the white space
from `inner` on. */
static int is_wary(const struct reader *r, const uint8_t *p, const uint8_t *inner, const uint8_t *end) {
    for (; p < end; p++) {
        if (LIKELY(!r->firsts[*p])) continue;
        if (p >= inner) return 1;
        for (int64_t i = 0; i < r->n_heads; i++) {
            const struct head *h = r->heads + i;
            if (!memcmp(p, h->bytes, (size_t)(inner - p < h->size ? inner - p : h->size))) return 1;
        }
    }
    return 0;
}

/* A text has been appended from `start` on: notes it down. */
static void note(struct reader *r, uint8_t *start) {
    const uint8_t *a = start, *b = r->text;
    memset(r->text, 0, 3); /* what space_at may read */
    for (int n; a < b && (n = space_at(a)); a += n) {}
    for (int n; b > a && (n = space_before(b, a)); b -= n) {}
    r->starts[r->n] = start - r->texts;
    r->sizes[r->n] = r->text - start;
    r->left[r->n] = (int32_t)(a - start);
    r->right[r->n] = (int32_t)(r->text - b);
    r->wary[r->n++] = (uint8_t)is_wary(r, start, b, r->text);
}

/* A name, or a value that is kept, in its quotes, appended to the layout; 0 where it is not plain. */
static int kept(struct reader *r) {
    uint8_t *start = r->layout;
    *r->layout++ = *r->p++;
    while (r->p < r->end && *r->p >= 0x20 && *r->p < 0x7F && *r->p != '\\' && *r->p != '"') {
        if (r->layout - start > LONGEST_NAME) return 0;
        *r->layout++ = *r->p++;
    }
    if (r->p == r->end || *r->p != '"') return 0;
    *r->layout++ = *r->p++;
    return 1;
}

INLINE int64_t digits(struct reader *r) {
    const uint8_t *start = r->p;
    while (r->p < r->end && (uint8_t)(*r->p - '0') < 10) r->p++;
    return r->p - start;
}

/* A number; 0 where it is none, or may mean another in 64 bits. */
static int number(struct reader *r) {
    if (*r->p == '-') r->p++;
    if (r->p == r->end) return 0;
    int zero = *r->p == '0';
    int64_t n = digits(r);
    if (!n || n > MOST_DIGITS || (zero && n > 1)) return 0;
    if (r->p < r->end && *r->p == '.') {
        r->p++;
        if (!digits(r)) return 0;
    }
    if (r->p < r->end && (*r->p | 32) == 'e') {
        r->p++;
        if (r->p < r->end && (*r->p == '+' || *r->p == '-')) r->p++;
        if (!digits(r)) return 0;
    }
    return 1;
}

static int word(struct reader *r, const char *name, int64_t size) {
    if (r->end - r->p < size || memcmp(r->p, name, (size_t)size)) return 0;
    memcpy(r->layout, name, (size_t)size);
    r->layout += size, r->p += size;
    return 1;
}

static int value(struct reader *r, int depth, int keep);

/* An object or a list, up to its end; 0 where it is not plain. */
static int many(struct reader *r, int depth) {
    uint8_t open = *r->p, close = open == '{' ? '}' : ']';
    *r->layout++ = *r->p++;
    blanks(r);
    for (int first = 1;; first = 0) {
        if (r->p == r->end) return 0;
        if (*r->p == close && first) break;
        int keep = 0;
        if (open == '{') {
            const uint8_t *name = r->layout;
            if (*r->p != '"' || !kept(r)) return 0;
            keep = r->layout - name == 6 && (!memcmp(name, "\"role\"", 6) || !memcmp(name, "\"from\"", 6));
            blanks(r);
            if (r->p == r->end || *r->p != ':') return 0;
            *r->layout++ = *r->p++;
            blanks(r);
        }
        if (!value(r, depth + 1, keep)) return 0;
        blanks(r);
        if (r->p == r->end || (*r->p != ',' && *r->p != close)) return 0;
        if (*r->p == close) break;
        *r->layout++ = *r->p++;
        blanks(r);
    }
    *r->layout++ = *r->p++;
    return 1;
}

/* A value; 0 where it is not plain. A text is kept in the layout if `keep`, else something stands for it there. */
static int value(struct reader *r, int depth, int keep) {
    if (depth > DEEPEST || r->p == r->end) return 0;
    if (*r->p == '{' || *r->p == '[') return many(r, depth);
    if (*r->p == '"') {
        if (keep) return kept(r);
        uint8_t *start = r->text;
        if (!unquoted(r)) return 0;
        if (r->text == start) *r->layout++ = '"', *r->layout++ = '"';
        else *r->layout++ = TEXT, note(r, start);
        return 1;
    }
    if (*r->p == 't') return word(r, "true", 4);
    if (*r->p == 'f') return word(r, "false", 5);
    if (*r->p == 'n') return word(r, "null", 4);
    if (depth != 1) return 0; /* a number inside of something may mean something */
    *r->layout++ = NUMBER;
    return number(r);
}

/* Reads the lines of data[:size]; each ends in a line feed, the last need not. Their number.

Of line i: kinds[i]; lines[i], where it begins, and lines[n] = size; its layout, the JSON without blanks and with bytes
in place of texts and numbers, ends at layout_ends[i]; its texts begin behind the text_ends[i - 1]th and end at
text_ends[i]. texts goes on for 16 bytes behind `size`, layouts too. heads are struct head, firsts 256 flags. */
int64_t EXPORT(rows_read)(const uint8_t *data, int64_t size, const uint8_t *firsts, int64_t n_heads, const void *heads,
                          int64_t *lines, uint8_t *kinds, uint8_t *layouts, int64_t *layout_ends, int64_t *text_ends,
                          uint8_t *texts, int64_t *starts, int64_t *sizes, int32_t *left, int32_t *right,
                          uint8_t *wary) {
    struct reader r = {data, data, layouts, texts, 0, texts, starts, sizes, left, right, wary, firsts, heads, n_heads};
    int64_t n = 0;
    for (const uint8_t *p = data, *all = data + size; p < all; n++) {
        const uint8_t *feed = memchr(p, '\n', (size_t)(all - p));
        struct reader before = r;
        r.p = p, r.end = feed ? feed : all;
        lines[n] = p - data;
        p = feed ? feed + 1 : all;
        blanks(&r);
        kinds[n] = r.p == r.end ? BLANK : LEFT_ALONE;
        if (r.p < r.end && *r.p == '{' && many(&r, 0)) {
            blanks(&r);
            if (r.p == r.end) kinds[n] = PLAIN;
        }
        if (kinds[n] != PLAIN) r = before;
        layout_ends[n] = r.layout - layouts;
        text_ends[n] = r.n;
    }
    lines[n] = size;
    return n;
}

/* n pieces of `from` side by side: where each ends in `to`. A piece that is to be `quoted` is written as orjson writes
the inside of a string, in up to six times its bytes. The bytes written. */
int64_t EXPORT(rows_join)(const uint8_t *from, int64_t n, const int64_t *starts, const int64_t *sizes,
                          const uint8_t *quoted, uint8_t *to, int64_t *ends) {
    static const char SHORT[32] = {[8] = 'b', [9] = 't', [10] = 'n', [12] = 'f', [13] = 'r'};
    uint8_t *out = to;
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *p = from + starts[i], *end = p + sizes[i];
        if (!quoted || !quoted[i]) {
            memcpy(out, p, (size_t)sizes[i]);
            out += sizes[i];
            p = end;
        }
        for (; p < end; p++) {
            if (LIKELY(*p >= 0x20 && *p != '"' && *p != '\\')) *out++ = *p;
            else if (*p >= 0x20) *out++ = '\\', *out++ = *p;
            else if (SHORT[*p]) *out++ = '\\', *out++ = (uint8_t)SHORT[*p];
            else {
                memcpy(out, "\\u00", 4);
                out[4] = (uint8_t)('0' + (*p >> 4));
                out[5] = (uint8_t)"0123456789abcdef"[*p & 15];
                out += 6;
            }
        }
        ends[i] = out - to;
    }
    return out - to;
}

static const uint64_t START[8] = {0x6A09E667F3BCC908u, 0xBB67AE8584CAA73Bu, 0x3C6EF372FE94F82Bu, 0xA54FF53A5F1D36F1u,
                                  0x510E527FADE682D1u, 0x9B05688C2B3E6C1Fu, 0x1F83D9ABFB41BD6Bu, 0x5BE0CD19137E2179u};
static const uint8_t ORDER[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

INLINE uint64_t turned(uint64_t x, int n) { return x >> n | x << (64 - n); }

static void compress(uint64_t *h, const uint8_t *block, uint64_t count, int last) {
    uint64_t v[16], m[16];
    memcpy(m, block, sizeof m); /* as little-endian chips have it, the only ones that torch has wheels for */
    for (int i = 0; i < 8; i++) v[i] = h[i], v[i + 8] = START[i];
    v[12] ^= count;
    if (last) v[14] = ~v[14];
#define MIX(a, b, c, d, x, y)                                                                  \
    v[a] += v[b] + (x), v[d] = turned(v[d] ^ v[a], 32), v[c] += v[d], v[b] = turned(v[b] ^ v[c], 24); \
    v[a] += v[b] + (y), v[d] = turned(v[d] ^ v[a], 16), v[c] += v[d], v[b] = turned(v[b] ^ v[c], 63)
    for (int round = 0; round < 12; round++) {
        const uint8_t *s = ORDER[round % 10];
        MIX(0, 4, 8, 12, m[s[0]], m[s[1]]);
        MIX(1, 5, 9, 13, m[s[2]], m[s[3]]);
        MIX(2, 6, 10, 14, m[s[4]], m[s[5]]);
        MIX(3, 7, 11, 15, m[s[6]], m[s[7]]);
        MIX(0, 5, 10, 15, m[s[8]], m[s[9]]);
        MIX(1, 6, 11, 12, m[s[10]], m[s[11]]);
        MIX(2, 7, 8, 13, m[s[12]], m[s[13]]);
        MIX(3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
#undef MIX
    for (int i = 0; i < 8; i++) h[i] ^= v[i] ^ v[i + 8];
}

/* BLAKE2b of 8 bytes (RFC 7693) of each of n stretches of data, which have these borders, as little-endian numbers. */
void EXPORT(rows_digests)(const uint8_t *data, int64_t n, const int64_t *borders, uint64_t *digests) {
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *p = data + borders[i];
        int64_t size = borders[i + 1] - borders[i], done = 0;
        uint64_t h[8];
        memcpy(h, START, sizeof h);
        h[0] ^= 0x01010000 ^ 8;
        for (; size - done > 128; done += 128) compress(h, p + done, (uint64_t)done + 128, 0);
        uint8_t rest[128] = {0};
        memcpy(rest, p + done, (size_t)(size - done));
        compress(h, rest, (uint64_t)size, 1);
        digests[i] = h[0];
    }
}
