/* What a decode step does besides its matrix products, for one precision: -DBF16=1 or 0. See kernels.py.

   Numbers are computed in float32 and rounded where transformers rounds them. Rows never see each other, and a row's result does
   not depend on how many there are. Vectors are the compiler's own (GCC's; Clang has the same), so but for the marked part nothing here is of one processor. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define L 16   /* numbers of a vector; sizes are multiples of it, of attention of twice it */
#define ROWS 4 /* of a task: what they read of the shared prefix is loaded once for all */

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));

static inline vf splat(float x) { return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
static inline vf loadf(const float *p) { vf x; memcpy(&x, p, sizeof x); return x; }
static inline void storef(float *p, vf x) { memcpy(p, &x, sizeof x); }

#if BF16
typedef uint16_t num;
static inline vf load(const num *p) {
    vh h;
    memcpy(&h, p, sizeof h);
    return (vf)(__builtin_convertvector(h, vu) << 16);
}
static inline vu bits(vf x) { /* to nearest, ties to even; what is not a number stays one */
    vu u = (vu)x, nan = (vu)(x != x);
    vu r = u + 0x7fff + ((u >> 16) & 1);
    return ((r & ~nan) | ((u | 0x400000) & nan)) >> 16;
}
static inline void store(num *p, vf x) {
    vh h = __builtin_convertvector(bits(x), vh);
    memcpy(p, &h, sizeof h);
}
static inline vf rounded(vf x) { return (vf)(bits(x) << 16); }
#else
typedef float num;
static inline vf load(const num *p) { return loadf(p); }
static inline void store(num *p, vf x) { storef(p, x); }
static inline vf rounded(vf x) { return x; }
#endif

#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

/* Lanes of a and b added in neighbouring blocks of 1, 2, 4, 8: of 16 vectors, after four rounds, lane i has the sum of the i-th. */
static inline vf fold1(vf a, vf b) {
    return PICK(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           PICK(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}
static inline vf fold2(vf a, vf b) {
    return PICK(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           PICK(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
static inline vf fold4(vf a, vf b) {
    return PICK(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
           PICK(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
}
static inline vf fold8(vf a, vf b) {
    return PICK(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           PICK(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
static inline float sum(vf x) {
    x = fold1(x, x);
    x = fold2(x, x);
    x = fold4(x, x);
    return fold8(x, x)[0];
}

static inline vf max(vf a, vf b) {
    vi a_larger = a > b;
    return (vf)(((vi)a & a_larger) | ((vi)b & ~a_larger));
}

static inline vf vexp(vf x) { /* e^x for x <= 88, to two roundings; 0 below -87 */
    vi tiny = x < -87.0f;
    x = max(x, splat(-87.0f));
    vf magic = splat(12582912.0f), n = x * 1.44269504f + magic - magic;
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vi exponent = (__builtin_convertvector(n, vi) + 127) << 23;
    return (vf)((vi)(p * (vf)exponent) & ~tiny);
}

/* h += delta, if there is one; out = the RMS norm of h times weight: (n, d) each. */
void add_norm(num *h, const num *delta, const num *weight, num *out, float eps, long n, long d) {
#pragma omp parallel for schedule(static) if (n * d > 8192)
    for (long i = 0; i < n; i++) {
        num *x = h + i * d;
        vf square = splat(0);
        for (long j = 0; j < d; j += L) {
            vf v = load(x + j);
            if (delta) {
                v = rounded(v + load(delta + i * d + j));
                store(x + j, v);
            }
            square += v * v;
        }
        float scale = 1.0f / sqrtf(sum(square) / d + eps);
        for (long j = 0; j < d; j += L) store(out + i * d + j, load(weight + j) * rounded(load(x + j) * scale));
    }
}

/* out = silu(gate) * up of rows [gate | up]: (n, 2 f) to (n, f). */
void gate(const num *both, num *out, long n, long f) {
#pragma omp parallel for schedule(static) if (n * f > 4096)
    for (long i = 0; i < n; i++)
        for (long j = 0; j < f; j += L) {
            vf x = load(both + 2 * i * f + j);
            vf silu = rounded(x / (1.0f + vexp(max(-x, splat(-87.0f)))));
            store(out + i * f + j, silu * load(both + (2 * i + 1) * f + j));
        }
}

#if BF16
typedef int16_t ordered;
#else
typedef int32_t ordered;
#endif

/* The number as an integer that is larger where it is. */
static inline ordered order(const num *x) {
    ordered bits;
    memcpy(&bits, x, sizeof bits);
    return bits ^ (bits < 0 ? (ordered)((1ull << (8 * sizeof bits - 1)) - 1) : 0);
}

/* The k largest of each row of x (n, v), in descending order, of equal ones the first, and -0 below 0: values (n, k) and their places. k <= v */
void top(const num *x, num *values, int64_t *places, long n, long v, long k) {
    const long part = 64;
#pragma omp parallel for schedule(static) if (n > 1)
    for (long i = 0; i < n; i++) {
        const num *row = x + i * v;
        int64_t *found = places + i * k;
        long have = 0;
        for (long j = 0; j < v; j += part) {
            long end = j + part < v ? j + part : v;
            if (have == k) { /* most parts have nothing that is larger than what was found */
                ordered least = order(row + found[k - 1]), most = order(row + j);
                if (end - j == part)
                    for (long p = 0; p < part; p++) {
                        ordered each = order(row + j + p);
                        most = each > most ? each : most;
                    }
                else most = (ordered)((1ull << (8 * sizeof most - 1)) - 1);
                if (most <= least) continue;
            }
            for (long p = j; p < end; p++) {
                ordered each = order(row + p);
                if (have == k && each <= order(row + found[k - 1])) continue;
                long at = have < k ? have++ : k - 1;
                for (; at > 0 && order(row + found[at - 1]) < each; at--) found[at] = found[at - 1];
                found[at] = p;
            }
        }
        for (long j = 0; j < k; j++) values[i * k + j] = row[found[j]];
    }
}

/* Factors of the products below. Where one instruction adds products in pairs, factors stand in pairs, as numbers of this
   precision, which is how transformers has queries and weights too; elsewhere they are floats that stand alone. */
#if BF16 && defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#define PAIR 2
typedef num factor;
typedef __m512i wide; /* L pairs */
static inline wide loadw(const num *p) { return _mm512_loadu_si512(p); }
static inline wide splatw(const factor *p) {
    int32_t two;
    memcpy(&two, p, sizeof two);
    return _mm512_set1_epi32(two);
}
static inline vf madd(vf s, wide a, wide b) { return (vf)_mm512_dpbf16_ps((__m512)s, (__m512bh)a, (__m512bh)b); }
static inline void storew(factor *p, vf x) { store(p, x); }
static inline wide loadq(const factor *p) { return loadw(p); }
/* Pairs of 32 columns of two rows, and of 16. */
static inline void zip2(const num *a, const num *b, wide *out) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4,
                                         35, 3, 34, 2, 33, 1, 32, 0);
    __m512i x = loadw(a), y = b ? loadw(b) : _mm512_setzero_si512();
    out[0] = _mm512_permutex2var_epi16(x, low, y);
    out[1] = _mm512_permutex2var_epi16(x, _mm512_add_epi16(low, _mm512_set1_epi16(16)), y);
}
static inline wide zip1(const num *a, const num *b) {
    __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)a));
    if (!b) return x;
    return _mm512_or_si512(x, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)b)), 16));
}
#else
#define PAIR 1
typedef float factor;
typedef vf wide;
static inline wide loadw(const num *p) { return load(p); }
static inline wide splatw(const factor *p) { return splat(*p); }
static inline vf madd(vf s, wide a, wide b) { return s + a * b; }
static inline void storew(factor *p, vf x) { storef(p, x); }
static inline wide loadq(const factor *p) { return loadf(p); }
static inline void zip2(const num *a, const num *b, wide *out) { out[0] = load(a), out[1] = load(a + L); }
static inline wide zip1(const num *a, const num *b) { return load(a); }
#endif

/* Columns [0, L w) of PAIR rows, of which there are `left`. Stored: they stand in pairs already, as in `paired` keys. */
static inline __attribute__((always_inline)) void columns(
    const num *b, long ldb, const int stored, long left, wide *out, const int w) {
    if (stored)
        for (int j = 0; j < w; j++) out[j] = loadw(b + PAIR * L * j);
    else {
        const num *other = PAIR > 1 && left > 1 ? b + ldb : NULL;
        if (w == 1) out[0] = zip1(b, other);
        else
            for (int j = 0; j < w; j += 2) zip2(b + L * j, other ? other + L * j : NULL, out + j);
    }
}

/* c (m, w vectors) += a (m, k) b (k, w vectors), m and w known to the compiler: all of c in registers. */
static inline __attribute__((always_inline)) void tile(
    const factor *a, long lda, const num *b, long ldb, const int stored, float *c, long ldc, long k, const int m, const int w) {
    vf acc[6][4];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < w; j++) acc[i][j] = loadf(c + i * ldc + L * j);
    for (long p = 0; p < k; p += PAIR) {
        wide row[4];
        columns(b + p * ldb, ldb, stored, k - p, row, w);
        for (int i = 0; i < m; i++) {
            wide x = splatw(a + i * lda + p);
            for (int j = 0; j < w; j++) acc[i][j] = madd(acc[i][j], x, row[j]);
        }
    }
    for (int i = 0; i < m; i++)
        for (int j = 0; j < w; j++) storef(c + i * ldc + L * j, acc[i][j]);
}

#define TILES(m)                                                      \
    case m:                                                           \
        if (w == 4) tile(x, lda, y, ldb, stored, z, ldc, k, m, 4);    \
        else tile(x, lda, y, ldb, stored, z, ldc, k, m, 1);           \
        break;

/* c (m, n) += a (m, k) b (k, n); where k is no multiple of PAIR, a has zeros behind it. */
static inline __attribute__((always_inline)) void product(
    const factor *a, long lda, const num *b, long ldb, const int stored, float *c, long ldc, long m, long n, long k) {
    for (long j = 0; j < n;) {
        int w = n - j >= 4 * L ? 4 : 1;
        for (long i = 0; i < m; i += 6) {
            const factor *x = a + i * lda;
            const num *y = b + (stored ? PAIR * j : j);
            float *z = c + i * ldc + j;
            switch (m - i < 6 ? m - i : 6) {
                TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)
            }
        }
        j += w * L;
    }
}

/* How many numbers stand together in the prefix's keys. */
long paired(void) { return PAIR; }

/* scores (m, ld) of m queries (m, d) to `run` keys that stand one after the other. */
static inline __attribute__((always_inline)) void dots(
    const factor *q, long m, const num *key, long run, float *scores, long ld, const long d) {
    long t = 0;
    for (; t + L <= run; t += L)
        for (long i = 0; i < m; i++) {
            vf four[4];
            for (int a = 0; a < 4; a++) {
                vf s[4] = {splat(0), splat(0), splat(0), splat(0)};
                for (long j = 0; j < d; j += PAIR * L)
                    for (int b = 0; b < 4; b++)
                        s[b] = madd(s[b], loadq(q + i * d + j), loadw(key + (t + 4 * a + b) * d + j));
                four[a] = fold2(fold1(s[0], s[1]), fold1(s[2], s[3]));
            }
            storef(scores + i * ld + t, fold8(fold4(four[0], four[1]), fold4(four[2], four[3])));
        }
    for (; t < run; t++)
        for (long i = 0; i < m; i++) {
            vf s = splat(0);
            for (long j = 0; j < d; j += PAIR * L) s = madd(s, loadq(q + i * d + j), loadw(key + t * d + j));
            scores[i * ld + t] = sum(s);
        }
}

/* A head's numbers, turned by its position's cosines and sines (d each) if there are any: those j of a vector. */
static inline vf turned(const num *x, const num *cosines, const num *sines, long j, long d) {
    vf v = load(x + j);
    if (!cosines) return v;
    long half = d / 2, other = j < half ? j + half : j - half;
    vf partner = load(x + other) * load(sines + j);
    return rounded(rounded(v * load(cosines + j)) + rounded(j < half ? -partner : partner));
}

/* Scores (end numbers, of which some are minus infinity) to weights that sum to one. */
static inline void softmax(float *x, factor *out, long end) {
    vf m = splat(-INFINITY), total = splat(0);
    float most = -INFINITY;
    for (long j = 0; j < end; j += L) m = max(m, loadf(x + j));
    for (int j = 0; j < L; j++) most = m[j] > most ? m[j] : most;
    for (long j = 0; j < end; j += L) {
        vf e = vexp(loadf(x + j) - most);
        total += e;
        storef(x + j, e);
    }
    float share = 1.0f / sum(total);
    for (long j = 0; j < end; j += L) storew(out + j, loadf(x + j) * share);
}

/* Ask for the own keys and values of a row before they are needed: they lie apart, and memory is slower than the prefix's products. */
static inline void ahead(const num *keys, const num *values, const int64_t *table, long block, long length, long head,
                         long kv_heads, long d) {
    for (long t = 0; t < length; t += block) {
        long place = (table[t / block] * kv_heads + head) * block * d, run = length - t < block ? length - t : block;
        for (long j = 0; j < run * d; j += 64 / (long)sizeof(num)) {
            __builtin_prefetch(keys + place + j, 0, 2);
            __builtin_prefetch(values + place + j, 0, 2);
        }
    }
}

/* Attention of each of n new tokens to [prefix | own tokens of its text up to itself]; new tokens are stored first, so that several
   may be of one text.

   q, k, v: (n, heads or kv_heads, d) with so many numbers from token to token, not yet turned if cosines, sines (n, d) are given.
   keys, values: (blocks, kv_heads, block, d); token t of i's text is in block table[i * table_row + t / block].
   at: (n,) own position of the new token. prefix_keys: (kv_heads, d / PAIR, padded, PAIR), zero behind the prefix's tokens;
   prefix_values: (kv_heads, prefix, d). out: (n, heads, d). Returns 0, or 1 where there was no memory. */
int attend(const num *q, long q_row, const num *k, long k_row, const num *v, long v_row, const num *cosines,
           const num *sines, num *keys, num *values, long block, const int64_t *table, long table_row,
           const int64_t *at, const num *prefix_keys, const num *prefix_values, long prefix, long padded, num *out,
           float scale, long n, long heads, long kv_heads, long d) {
    long group = heads / kv_heads, parts = (n + ROWS - 1) / ROWS, longest = 0, queries = ROWS * group;
    int failed = 0;
    for (long i = 0; i < n; i++) longest = at[i] > longest ? at[i] : longest;
    long ld = padded + (longest + L) / L * L;
#pragma omp parallel if (parts * kv_heads > 1)
    {
        float *sums = malloc(queries * (2 * d + 2 * ld) * sizeof(float)), *scores = sums + queries * d;
        factor *query = (factor *)(scores + queries * ld), *weights = query + queries * d;
        if (!sums) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (long i = 0; i < n; i++)
            for (long head = 0; head < kv_heads; head++) {
                const num *c = cosines ? cosines + i * d : NULL, *s = cosines ? sines + i * d : NULL;
                long place = ((table[i * table_row + at[i] / block] * kv_heads + head) * block + at[i] % block) * d;
                for (long j = 0; j < d; j += L) store(keys + place + j, turned(k + i * k_row + head * d, c, s, j, d));
                memcpy(values + place, v + i * v_row + head * d, d * sizeof(num));
            }
#pragma omp for schedule(dynamic)
        for (long task = 0; task < parts * kv_heads; task++) {
            if (!sums) continue;
            long head = task / parts, first = task % parts * ROWS, rows = n - first < ROWS ? n - first : ROWS;
            long m = rows * group;
            for (long r = 0; r < rows; r++)
                ahead(keys, values, table + (first + r) * table_row, block, at[first + r], head, kv_heads, d);
            memset(sums, 0, m * d * sizeof(float));
            for (long r = 0; r < rows; r++)
                for (long g = 0; g < group; g++) {
                    long i = first + r;
                    const num *c = cosines ? cosines + i * d : NULL, *s = cosines ? sines + i * d : NULL;
                    for (long j = 0; j < d; j += L)
                        storew(query + (r * group + g) * d + j,
                               turned(q + i * q_row + (head * group + g) * d, c, s, j, d) * scale);
                }
            if (prefix) {
                for (long i = 0; i < m; i++) memset(scores + i * ld, 0, padded * sizeof(float));
                product(query, d, prefix_keys + head * d * padded, padded, 1, scores, ld, m, padded, d);
            }
            for (long r = 0; r < rows; r++) {
                long i = first + r, len = at[i] + 1, end = padded + (len + L - 1) / L * L;
                float *mine = scores + r * group * ld;
                const factor *own = query + r * group * d;
                for (long t = 0; t < len; t += block) {
                    const num *key = keys + (table[i * table_row + t / block] * kv_heads + head) * block * d;
                    long run = len - t < block ? len - t : block;
                    if (d == 64) dots(own, group, key, run, mine + padded + t, ld, 64);
                    else if (d == 128) dots(own, group, key, run, mine + padded + t, ld, 128);
                    else dots(own, group, key, run, mine + padded + t, ld, d);
                }
                for (long g = 0; g < group; g++) {
                    float *x = mine + g * ld;
                    for (long j = prefix; j < padded; j++) x[j] = -INFINITY;
                    for (long j = padded + len; j < end; j++) x[j] = -INFINITY;
                    softmax(x, weights + (r * group + g) * ld, end);
                }
            }
            if (prefix) product(weights, ld, prefix_values + head * prefix * d, d, 0, sums, d, m, d, prefix);
            for (long r = 0; r < rows; r++) {
                long i = first + r, len = at[i] + 1;
                for (long t = 0; t < len; t += block) {
                    const num *value = values + (table[i * table_row + t / block] * kv_heads + head) * block * d;
                    long run = len - t < block ? len - t : block;
                    product(weights + r * group * ld + padded + t, ld, value, d, 0, sums + r * group * d, d, group, d, run);
                }
                for (long g = 0; g < group; g++)
                    for (long j = 0; j < d; j += L)
                        store(out + (i * heads + head * group + g) * d + j, loadf(sums + (r * group + g) * d + j));
            }
        }
        free(sums);
    }
    return failed;
}
