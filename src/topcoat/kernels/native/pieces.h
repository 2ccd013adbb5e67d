/* Pieces of a word, as byte-level tokenizers cut it before they merge; data/word_rules.py has the expressions. */
#pragma once
#include "simd.h"

enum { GPT2 = 1, CL100K = 2 };
enum { UNKNOWN = 0, LETTER = 1, DIGIT = 2, WHITE = 3, SIGN = 4 };
enum { KINDS = 0x20000 }; /* characters that a table of kinds covers */

struct text {
    const uint8_t *bytes, *kinds; /* the kind of a character at each of its bytes */
    int64_t size;
};

INLINE int is_inner(uint8_t c) { return (c & 0xC0) == 0x80; } /* a byte of a character, not its first */

/* The kinds of a word's bytes; 0 where one is not known. */
INLINE int kinds_of(const uint8_t *table, const uint8_t *bytes, int64_t size, uint8_t *kinds) {
    for (int64_t i = 0; i < size;) {
        uint32_t code = bytes[i];
        int more = code < 0x80 ? 0 : code < 0xE0 ? 1 : code < 0xF0 ? 2 : 3;
        if (more) code &= 0x3Fu >> more;
        for (int n = 1; n <= more; n++) code = code << 6 | (bytes[i + n] & 0x3F);
        uint8_t kind = code < KINDS ? table[code] : UNKNOWN;
        if (!kind) return 0;
        for (int n = 0; n <= more; n++) kinds[i++] = kind;
    }
    return 1;
}

/* Where what is of one kind ends. */
INLINE int64_t run(const struct text *t, int64_t p, int64_t end, uint8_t kind) {
    while (p < end && t->kinds[p] == kind) p++;
    return p;
}

INLINE int64_t after(const struct text *t, int64_t p) {
    for (p++; p < t->size && is_inner(t->bytes[p]); p++) {}
    return p;
}

INLINE int is_break(uint8_t c) { return c == '\n' || c == '\r'; }

/* Bytes of "'s", "'ll" and the like at p, or 0. Lower case only, or any. */
INLINE int64_t contraction(const struct text *t, int64_t p, int64_t end, int any_case) {
    if (t->bytes[p] != '\'' || end - p < 2) return 0;
    uint8_t a = t->bytes[p + 1], b = end - p < 3 ? 0 : t->bytes[p + 2];
    if (any_case && a < 0x80 && b < 0x80) a |= 32, b |= 32; /* no sign becomes one of these letters */
    else if (any_case && a < 0x80) a |= 32;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* White space from p on: up to its last character where another kind follows, for that one may belong to it. */
INLINE int64_t white_end(const struct text *t, int64_t p, int64_t end) {
    int64_t q = run(t, p, end, WHITE), last = q - 1;
    while (last > p && is_inner(t->bytes[last])) last--;
    return q == end || last == p ? q : last;
}

INLINE int64_t gpt2_piece(const struct text *t, int64_t p, int64_t end) {
    int64_t short_form = contraction(t, p, end, 0);
    if (short_form) return p + short_form;
    int64_t q = t->bytes[p] == ' ' && p + 1 < end ? p + 1 : p;
    return t->kinds[q] == WHITE ? white_end(t, p, end) : run(t, q, end, t->kinds[q]);
}

INLINE int64_t cl100k_piece(const struct text *t, int64_t p, int64_t end, int64_t digits) {
    int64_t short_form = contraction(t, p, end, 1);
    if (short_form) return p + short_form;
    uint8_t kind = t->kinds[p];
    int64_t next = after(t, p);
    if (kind == LETTER) return run(t, p, end, LETTER);
    if (kind != DIGIT && !is_break(t->bytes[p]) && next < end && t->kinds[next] == LETTER)
        return run(t, next, end, LETTER);
    if (kind == DIGIT) {
        int64_t q = p;
        for (int64_t n = 0; q < end && t->kinds[q] == DIGIT && (!digits || n < digits); n++) q = after(t, q);
        return q;
    }
    int64_t q = t->bytes[p] == ' ' && p + 1 < end ? p + 1 : p;
    if (t->kinds[q] == SIGN) {
        q = run(t, q, end, SIGN);
        while (q < end && is_break(t->bytes[q])) q++;
        return q;
    }
    int64_t after_break = 0;
    for (q = p; q < end && t->kinds[q] == WHITE; q++)
        if (is_break(t->bytes[q])) after_break = q + 1;
    return after_break ? after_break : white_end(t, p, end);
}

/* Where the piece ends that begins at p, before the end of its word. Most digits of a piece: 0 is any number. */
INLINE int64_t piece_end(const struct text *t, int64_t p, int64_t kind, int64_t digits) {
    if (kind == CL100K) return cl100k_piece(t, p, t->size, digits);
    if (!digits) return gpt2_piece(t, p, t->size);
    if (t->kinds[p] == DIGIT) return after(t, p); /* every digit was cut out before */
    int64_t stop = p;
    while (stop < t->size && t->kinds[stop] != DIGIT) stop++;
    return gpt2_piece(t, p, stop);
}
