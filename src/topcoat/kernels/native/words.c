/* Words of texts -> ids and ends of their tokens, each word remembered; data/words.py says when that is right.

A memory is a table of words with open addressing: bytes of a word, whether it begins a segment -> its tokens. What was
not met before is merged here where the rules are known (struct rules), else it is asked for: words_find leaves it
without tokens, words_asked lists it, words_tell answers. A memory is one thread's; rules may be shared. */
#include "pieces.h"
#include "utf8.h"
#include <stdlib.h>

enum { INLINE_BYTES = 24, FEW = 4, LONGEST = 256, LONGEST_PIECE = 256, ASKED = -1, AHEAD = 16 };

struct merge {
    uint64_t pair; /* the ids of both, one above the other */
    int32_t rank, id;
};

struct rules {
    int32_t byte_ids[256];
    int64_t kind, digits;  /* most digits of a piece, 0: any number */
    uint8_t kinds[KINDS];  /* of characters */
    uint64_t merge_mask;
    struct merge *merges;      /* rank -1: an empty slot */
    struct memory *vocabulary; /* pieces that are tokens whole, or NULL */
};

struct word { /* 56 bytes */
    uint32_t length; /* of its bytes, and the lowest bit: it begins a segment */
    int32_t count;
    union {
        uint64_t parts[INLINE_BYTES / 8]; /* a short word, zeros behind it */
        int64_t at;                       /* a longer one: where it stands in `bytes` */
    } key;
    union {
        struct {
            int32_t ids[FEW];
            uint8_t ends[FEW];
        } few; /* up to FEW tokens of a word under 256 bytes */
        int64_t start; /* more: where they stand in `ids` and `ends` */
    } tokens;
};

struct asked {
    int64_t number, start, length, first;
};

struct memory {
    const struct rules *rules;
    struct word *words;
    int64_t n, room;
    uint64_t *slots; /* high bits of the hash above number + 1; 0 is empty */
    int64_t bits;
    uint8_t *bytes;
    int64_t bytes_used, bytes_room;
    int32_t *ids, *ends;
    int64_t used, tokens_room;
    struct asked *asked;
    int64_t n_asked, asked_room;
};

/* Makes *array hold `count` items; 0 if there is no memory for them. */
static int hold(void *array, int64_t *room, int64_t count, size_t size) {
    if (count <= *room) return 1;
    int64_t wanted = *room ? *room : 1024;
    while (wanted < count) wanted *= 2;
    void *old, *grown;
    memcpy(&old, array, sizeof old);
    grown = realloc(old, (size_t)wanted * size);
    if (!grown) return 0;
    memcpy(array, &grown, sizeof grown);
    *room = wanted;
    return 1;
}

/* The first n bytes at p, n up to 8, zeros behind. Eight bytes are read. */
INLINE uint64_t load_some8(const uint8_t *p, int64_t n) {
    return n >= 8 ? load8(p) : n <= 0 ? 0 : load8(p) & ((1ull << 8 * n) - 1);
}

INLINE uint64_t mixed(uint64_t h, uint64_t x) {
    h = (h ^ x) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

struct key {
    const uint8_t *bytes;
    uint64_t parts[INLINE_BYTES / 8], hash;
    int64_t size;
    uint32_t length;
};

/* 24 bytes from `bytes` on may be read. */
INLINE struct key key_of(const uint8_t *bytes, int64_t size, int first) {
    struct key k = {bytes, {0}, 0, size, (uint32_t)size << 1 | (uint32_t)first};
    uint64_t h = k.length;
    for (int i = 0; i < INLINE_BYTES / 8; i++) {
        k.parts[i] = load_some8(bytes + 8 * i, size - 8 * i);
        h = mixed(h, k.parts[i]);
    }
    for (int64_t i = INLINE_BYTES; i < size; i += 8) h = mixed(h, load_some8(bytes + i, size - i));
    k.hash = (h ^ h >> 32) * 0xFF51AFD7ED558CCDu;
    return k;
}

INLINE int same(const struct memory *m, const struct word *w, const struct key *k) {
    if (w->length != k->length) return 0;
    if (k->size > INLINE_BYTES) return !memcmp(m->bytes + w->key.at, k->bytes, (size_t)k->size);
    return !((w->key.parts[0] ^ k->parts[0]) | (w->key.parts[1] ^ k->parts[1]) | (w->key.parts[2] ^ k->parts[2]));
}

/* The slot where the key stands, or the empty one where it would. */
INLINE uint64_t slot_of(const struct memory *m, const struct key *k) {
    uint64_t mask = (1ull << m->bits) - 1, at = k->hash >> (64 - m->bits), tag = k->hash & 0xFFFFFFFF00000000u;
    for (;; at = (at + 1) & mask) {
        uint64_t slot = m->slots[at];
        if (!slot || ((slot & 0xFFFFFFFF00000000u) == tag && same(m, m->words + (uint32_t)slot - 1, k))) return at;
    }
}

static int grow_slots(struct memory *m) {
    int64_t bits = m->bits + 1;
    uint64_t *slots = calloc(1ull << bits, sizeof *slots);
    if (!slots) return 0;
    uint64_t mask = (1ull << bits) - 1;
    for (uint64_t i = 0; i < 1ull << m->bits; i++) {
        uint64_t slot = m->slots[i];
        if (!slot) continue;
        const struct word *w = m->words + (uint32_t)slot - 1;
        int64_t size = w->length >> 1;
        uint8_t padded[INLINE_BYTES];
        memcpy(padded, w->key.parts, sizeof padded);
        const uint8_t *bytes = size > INLINE_BYTES ? m->bytes + w->key.at : padded;
        uint64_t at = key_of(bytes, size, (int)(w->length & 1)).hash >> (64 - bits);
        while (slots[at]) at = (at + 1) & mask;
        slots[at] = slot;
    }
    free(m->slots);
    m->slots = slots;
    m->bits = bits;
    return 1;
}

/* A new word without tokens; its number, or -1 without memory. It is looked up from now on if `kept`. */
static int64_t add(struct memory *m, const struct key *k, int kept) {
    if (m->n >= INT32_MAX - 1 || !hold(&m->words, &m->room, m->n + 1, sizeof *m->words)) return -1;
    struct word *w = m->words + m->n;
    *w = (struct word){.length = k->length, .count = ASKED};
    if (k->size <= INLINE_BYTES) memcpy(w->key.parts, k->parts, sizeof k->parts);
    if (kept) {
        if (k->size > INLINE_BYTES) {
            if (!hold(&m->bytes, &m->bytes_room, m->bytes_used + k->size + 8, 1)) return -1; /* 8: read, not used */
            w->key.at = m->bytes_used;
            memcpy(m->bytes + w->key.at, k->bytes, (size_t)k->size);
            m->bytes_used += k->size;
        }
        if (2 * (uint64_t)m->n >= 1ull << m->bits && !grow_slots(m)) return -1;
        m->slots[slot_of(m, k)] = (k->hash & 0xFFFFFFFF00000000u) | (uint64_t)(m->n + 1);
    }
    return m->n++;
}

/* Gives a word its tokens; 0 without memory. */
static int tell(struct memory *m, struct word *w, int64_t n, const int32_t *ids, const int32_t *ends) {
    w->count = (int32_t)n;
    if (n <= FEW && w->length >> 1 < 256) {
        for (int64_t i = 0; i < n; i++) w->tokens.few.ids[i] = ids[i], w->tokens.few.ends[i] = (uint8_t)ends[i];
        return 1;
    }
    if (m->used + n > m->tokens_room) {
        int64_t room = m->tokens_room;
        if (!hold(&m->ids, &room, m->used + n, sizeof *m->ids)) return 0;
        if (!hold(&m->ends, &m->tokens_room, m->used + n, sizeof *m->ends)) return 0;
    }
    memcpy(m->ids + m->used, ids, (size_t)n * sizeof *ids);
    memcpy(m->ends + m->used, ends, (size_t)n * sizeof *ends);
    w->tokens.start = m->used;
    m->used += n;
    return 1;
}

/* ---- merging ---- */

INLINE const struct merge *merge_of(const struct rules *r, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (uint64_t at = mixed(0, pair) & r->merge_mask;; at = (at + 1) & r->merge_mask) {
        const struct merge *found = r->merges + at;
        if (found->rank < 0) return NULL;
        if (found->pair == pair) return found;
    }
}

/* The tokens of a piece, appended behind n others: always the leftmost pair of the lowest rank is merged. Their number
with these. `base` is where the piece begins in its word. */
static int64_t merge_piece(const struct rules *r, const uint8_t *piece, int64_t size, int64_t base, int64_t n,
                           int32_t *ids, int32_t *ends) {
    if (r->vocabulary) {
        uint8_t padded[LONGEST_PIECE + INLINE_BYTES] = {0};
        memcpy(padded, piece, (size_t)size);
        struct key k = key_of(padded, size, 0);
        uint64_t slot = r->vocabulary->slots[slot_of(r->vocabulary, &k)];
        if (slot) {
            ids[n] = r->vocabulary->words[(uint32_t)slot - 1].tokens.few.ids[0];
            ends[n] = (int32_t)(base + size);
            return n + 1;
        }
    }
    int32_t *own = ids + n, *end = ends + n, ranks[LONGEST_PIECE], merged[LONGEST_PIECE];
    int64_t count = size;
    for (int64_t i = 0; i < count; i++) own[i] = r->byte_ids[piece[i]], end[i] = (int32_t)(base + i + 1);
    for (int64_t i = 0; i + 1 < count; i++) {
        const struct merge *found = merge_of(r, own[i], own[i + 1]);
        ranks[i] = found ? found->rank : INT32_MAX;
        merged[i] = found ? found->id : 0;
    }
    while (count > 1) {
        int64_t best = 0;
        for (int64_t i = 1; i + 1 < count; i++)
            if (ranks[i] < ranks[best]) best = i;
        if (ranks[best] == INT32_MAX) break;
        own[best] = merged[best];
        end[best] = end[best + 1];
        count--;
        for (int64_t i = best + 1; i < count; i++) own[i] = own[i + 1], end[i] = end[i + 1];
        for (int64_t i = best + 1; i + 1 < count; i++) ranks[i] = ranks[i + 1], merged[i] = merged[i + 1];
        for (int64_t i = best ? best - 1 : 0; i <= best && i + 1 < count; i++) {
            const struct merge *found = merge_of(r, own[i], own[i + 1]);
            ranks[i] = found ? found->rank : INT32_MAX;
            merged[i] = found ? found->id : 0;
        }
    }
    return n + count;
}

/* The tokens of a word into ids and ends, which hold `size`; -1 where the rules do not say. */
static int64_t merge_word(const struct rules *r, const uint8_t *word, int64_t size, uint8_t *kinds, int32_t *ids,
                          int32_t *ends) {
    struct text t = {word, kinds, size};
    if (!kinds_of(r->kinds, word, size, kinds)) return -1;
    for (int64_t i = 0; i < size; i++)
        if (r->byte_ids[word[i]] < 0) return -1;
    int64_t n = 0;
    for (int64_t p = 0; p < size;) {
        int64_t q = piece_end(&t, p, r->kind, r->digits);
        if (q - p > LONGEST_PIECE) return -1;
        n = merge_piece(r, word + p, q - p, p, n, ids, ends);
        p = q;
    }
    for (int64_t i = 0; i < n; i++) /* a token that ends inside a character is said to end behind it */
        while (ends[i] < size && is_inner(word[ends[i]])) ends[i]++;
    return n;
}

/* ---- what Python calls ---- */

void EXPORT(words_free)(struct memory *m) {
    if (!m) return;
    free(m->words), free(m->slots), free(m->bytes), free(m->ids), free(m->ends), free(m->asked);
    free(m);
}

/* An empty memory; rules may be NULL. NULL without memory. */
struct memory *EXPORT(words_new)(const struct rules *rules) {
    struct memory *m = calloc(1, sizeof *m);
    if (!m) return NULL;
    m->rules = rules;
    m->bits = 16;
    m->slots = calloc(1ull << m->bits, sizeof *m->slots);
    if (m->slots) return m;
    free(m);
    return NULL;
}

void EXPORT(words_rules_free)(struct rules *r) {
    if (!r) return;
    EXPORT(words_free)(r->vocabulary);
    free(r->merges), free(r);
}

/* Rules of merging: kinds of the first KINDS characters, ids of the 256 bytes, then of each merge's left, right and
whole, in order of rank. `vocabulary`, whose n_whole tokens have borders and ids, is NULL where a piece that is a token
may still be merged from its bytes; it goes on for 24 bytes. NULL without memory. */
struct rules *EXPORT(words_rules_new)(int64_t kind, int64_t digits, const uint8_t *kinds, const int32_t *byte_ids,
                                      int64_t n_merges, const int32_t *merges, int64_t n_whole,
                                      const uint8_t *vocabulary, const int64_t *borders, const int32_t *ids) {
    struct rules *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->kind = kind, r->digits = digits, r->merge_mask = 1023;
    memcpy(r->byte_ids, byte_ids, sizeof r->byte_ids);
    memcpy(r->kinds, kinds, sizeof r->kinds);
    while (r->merge_mask < 2 * (uint64_t)n_merges) r->merge_mask = 2 * r->merge_mask + 1;
    r->merges = malloc((r->merge_mask + 1) * sizeof *r->merges);
    if (vocabulary) r->vocabulary = EXPORT(words_new)(NULL);
    if (!r->merges || (vocabulary && !r->vocabulary)) goto failed;
    for (uint64_t i = 0; i <= r->merge_mask; i++) r->merges[i].rank = -1;
    for (int64_t i = 0; i < n_merges; i++) {
        uint64_t pair = (uint64_t)(uint32_t)merges[3 * i] << 32 | (uint32_t)merges[3 * i + 1];
        uint64_t at = mixed(0, pair) & r->merge_mask;
        while (r->merges[at].rank >= 0 && r->merges[at].pair != pair) at = (at + 1) & r->merge_mask;
        r->merges[at] = (struct merge){pair, (int32_t)i, merges[3 * i + 2]}; /* of two alike the later counts */
    }
    for (int64_t i = 0; vocabulary && i < n_whole; i++) {
        struct key k = key_of(vocabulary + borders[i], borders[i + 1] - borders[i], 0);
        int64_t number = k.size > LONGEST_PIECE ? 0 : add(r->vocabulary, &k, 1);
        if (number < 0) goto failed;
        if (k.size <= LONGEST_PIECE) r->vocabulary->words[number].tokens.few.ids[0] = ids[i];
    }
    return r;
failed:
    EXPORT(words_rules_free)(r);
    return NULL;
}

/* Looks up one word that begins at `start`, merging it if it is new. Its number, or -1 without memory. */
static int64_t find(struct memory *m, const struct key *k, int64_t start) {
    int64_t size = k->size;
    int kept = size <= LONGEST;
    if (kept) {
        uint64_t slot = m->slots[slot_of(m, k)];
        if (LIKELY(slot)) return (uint32_t)slot - 1;
    }
    int64_t number = add(m, k, kept);
    if (number < 0) return -1;
    int32_t few[2 * LONGEST], *ids = few, *ends = few + LONGEST, *many = NULL;
    uint8_t some[LONGEST], *kinds = some;
    if (!kept && m->rules) {
        many = malloc((size_t)size * (2 * sizeof *many + 1));
        if (!many) return -1;
        ids = many, ends = many + size, kinds = (uint8_t *)(many + 2 * size);
    }
    int64_t n = m->rules ? merge_word(m->rules, k->bytes, size, kinds, ids, ends) : -1;
    int done = n < 0 ? hold(&m->asked, &m->asked_room, m->n_asked + 1, sizeof *m->asked)
                     : tell(m, m->words + number, n, ids, ends);
    if (n < 0 && done) m->asked[m->n_asked++] = (struct asked){number, start, size, k->length & 1};
    free(many);
    return done ? number : -1;
}

/* Where the word ends that begins at p. */
INLINE int64_t word_end(const uint8_t *data, int64_t size, const uint8_t *marks, int64_t p) {
    for (p++; p < size && !marks[p]; p++)
        if (data[p] == ' ' && p + 1 < size && !marks[p + 1] && !space_at(data + p + 1) && !space_before(data + p, data))
            break;
    return p;
}

/* Cuts data into words and looks them up: starts and numbers of these, their count. -1 without memory.

marks[i] is not 0 where a segment begins: 0 is one. A word begins there, and at each single space between two characters
of one segment that are no white space. data goes on for 24 bytes. What is asked for is that of this call. */
int64_t EXPORT(words_find)(struct memory *m, const uint8_t *data, int64_t size, const uint8_t *marks, int64_t *starts,
                           int32_t *numbers) {
    struct key keys[AHEAD];
    m->n_asked = 0;
    int64_t n = 0;
    for (int64_t p = 0; p < size;) { /* some words at a time: their places are fetched while others are looked at */
        int count = 0;
        for (int64_t end; count < AHEAD && p < size; p = end, count++) {
            end = word_end(data, size, marks, p);
            keys[count] = key_of(data + p, end - p, marks[p] != 0);
            starts[n + count] = p;
            __builtin_prefetch(m->slots + (keys[count].hash >> (64 - m->bits)));
        }
        for (int i = 0; i < count; i++) {
            uint64_t slot = m->slots[keys[i].hash >> (64 - m->bits)];
            if (slot) __builtin_prefetch(m->words + (uint32_t)slot - 1);
        }
        for (int i = 0; i < count; i++, n++) {
            int64_t number = find(m, keys + i, starts[n]);
            if (number < 0) return -1;
            numbers[n] = (int32_t)number;
        }
    }
    return n;
}

/* How many words are asked for, and where each stands: (number, start, bytes, whether it begins a segment). */
int64_t EXPORT(words_asked)(const struct memory *m, int64_t *out) {
    if (out) memcpy(out, m->asked, (size_t)m->n_asked * sizeof *m->asked);
    return m->n_asked;
}

/* Answers what was asked, in its order; the tokens of all stand side by side. 0, or -1 without memory. */
int64_t EXPORT(words_tell)(struct memory *m, int64_t n, const int64_t *numbers, const int64_t *counts,
                           const int32_t *ids, const int32_t *ends) {
    for (int64_t i = 0; i < n; ids += counts[i], ends += counts[i], i++)
        if (!tell(m, m->words + numbers[i], counts[i], ids, ends)) return -1;
    return 0;
}

/* A word that is the text of an added token. 0, or -1 without memory. */
int64_t EXPORT(words_add)(struct memory *m, const uint8_t *padded, int64_t size, int64_t id) {
    struct key k = key_of(padded, size, 1);
    int64_t number = add(m, &k, 1);
    int32_t end = (int32_t)size, only = (int32_t)id;
    return number >= 0 && tell(m, m->words + number, 1, &only, &end) ? 0 : -1;
}

/* (words, tokens of long ones) that are remembered. */
void EXPORT(words_held)(const struct memory *m, int64_t *out) { out[0] = m->n, out[1] = m->used; }

/* Tokens of n words. */
int64_t EXPORT(words_count)(const struct memory *m, int64_t n, const int32_t *numbers) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        if (i + AHEAD < n) __builtin_prefetch(m->words + numbers[i + AHEAD]);
        count += m->words[numbers[i]].count;
    }
    return count;
}

/* Ids and ends (in bytes of the data) of n words side by side, and the first token of the texts that begin at `begins`,
which ascend. */
void EXPORT(words_write)(const struct memory *m, int64_t n, const int64_t *starts, const int32_t *numbers, int32_t *ids,
                         int64_t *ends, int64_t texts, const int64_t *begins, int64_t *borders) {
    int64_t done = 0, text = 0;
    for (int64_t i = 0; i < n; i++) {
        if (i + AHEAD < n) __builtin_prefetch(m->words + numbers[i + AHEAD]);
        while (text < texts && begins[text] <= starts[i]) borders[text++] = done;
        const struct word *w = m->words + numbers[i];
        int few = w->count <= FEW && w->length >> 1 < 256;
        for (int64_t j = 0; j < w->count; j++, done++) {
            ids[done] = few ? w->tokens.few.ids[j] : m->ids[w->tokens.start + j];
            ends[done] = starts[i] + (few ? w->tokens.few.ends[j] : m->ends[w->tokens.start + j]);
        }
    }
    while (text < texts) borders[text++] = done;
}
