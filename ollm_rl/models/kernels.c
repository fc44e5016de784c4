/* What a decode step does besides its matrix products, for one precision: -DBF16=1 or 0. See kernels.py.

   Numbers are computed in float32 and rounded where transformers rounds them. Rows never see each other, and a row's result does
   not depend on how many there are. Vectors are the compiler's own (GCC and Clang), so nothing here is of one processor. */

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

/* c (m, w vectors) += a (m, k) b (k, w vectors), m and w known to the compiler: all of c in registers. */
static inline __attribute__((always_inline)) void tile(
    const float *a, long lda, const num *b, long ldb, float *c, long ldc, long k, const int m, const int w) {
    vf acc[6][4];
    for (int i = 0; i < m; i++)
        for (int j = 0; j < w; j++) acc[i][j] = loadf(c + i * ldc + L * j);
    for (long p = 0; p < k; p++) {
        vf row[4];
        for (int j = 0; j < w; j++) row[j] = load(b + p * ldb + L * j);
        for (int i = 0; i < m; i++) {
            vf x = splat(a[i * lda + p]);
            for (int j = 0; j < w; j++) acc[i][j] += x * row[j];
        }
    }
    for (int i = 0; i < m; i++)
        for (int j = 0; j < w; j++) storef(c + i * ldc + L * j, acc[i][j]);
}

#define TILES(m)                                                       \
    case m:                                                            \
        if (wide) tile(x, lda, y, ldb, z, ldc, k, m, 4);               \
        else tile(x, lda, y, ldb, z, ldc, k, m, 1);                    \
        break;

/* c (m, n) += a (m, k) b (k, n). */
static void product(const float *a, long lda, const num *b, long ldb, float *c, long ldc, long m, long n, long k) {
    for (long j = 0; j < n;) {
        int wide = n - j >= 4 * L;
        for (long i = 0; i < m; i += 6) {
            const float *x = a + i * lda;
            const num *y = b + j;
            float *z = c + i * ldc + j;
            switch (m - i < 6 ? m - i : 6) {
                TILES(1) TILES(2) TILES(3) TILES(4) TILES(5) TILES(6)
            }
        }
        j += wide ? 4 * L : L;
    }
}

#if BF16 && defined(__AVX512BF16__)
#include <immintrin.h>
#define PAIRS (2 * L) /* numbers of a vector of this precision: their products in pairs are one instruction */
static inline vf pairs(vf s, const num *a, const num *b) {
    __m512i x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (vf)_mm512_dpbf16_ps((__m512)s, (__m512bh)x, (__m512bh)y);
}
typedef num asked; /* what queries are multiplied as: numbers of the precision, as transformers has them */
#else
#define PAIRS L
static inline vf pairs(vf s, const float *a, const num *b) { return s + loadf(a) * load(b); }
typedef float asked;
#endif

/* scores (m, ld) of m queries (m, d) to `run` keys that stand one after the other. */
static inline __attribute__((always_inline)) void dots(
    const asked *q, long m, const num *key, long run, float *scores, long ld, const long d) {
    long t = 0;
    for (; t + L <= run; t += L)
        for (long i = 0; i < m; i++) {
            vf four[4];
            for (int a = 0; a < 4; a++) {
                vf s[4] = {splat(0), splat(0), splat(0), splat(0)};
                for (long j = 0; j < d; j += PAIRS)
                    for (int b = 0; b < 4; b++) s[b] = pairs(s[b], q + i * d + j, key + (t + 4 * a + b) * d + j);
                four[a] = fold2(fold1(s[0], s[1]), fold1(s[2], s[3]));
            }
            storef(scores + i * ld + t, fold8(fold4(four[0], four[1]), fold4(four[2], four[3])));
        }
    for (; t < run; t++)
        for (long i = 0; i < m; i++) {
            vf s = splat(0);
            for (long j = 0; j < d; j += PAIRS) s = pairs(s, q + i * d + j, key + t * d + j);
            scores[i * ld + t] = sum(s);
        }
}

/* A head's numbers as floats, turned by its position's cosines and sines (d each) if there are any, and scaled. */
static inline void turned(const num *x, const num *cosines, const num *sines, float scale, float *out, num *kept, long d) {
    for (long j = 0; j < d; j += L) {
        vf v = load(x + j);
        if (cosines) {
            long half = d / 2, other = j < half ? j + half : j - half;
            vf partner = load(x + other) * load(sines + j);
            v = rounded(rounded(v * load(cosines + j)) + rounded(j < half ? -partner : partner));
        }
        if (kept) store(kept + j, v);
        if (out) storef(out + j, v * scale);
    }
}

/* Attention of one new token of each of n rows to [prefix | own tokens], itself included, which is written first.

   q, k, v: (n, heads or kv_heads, d) with so many numbers from row to row, not yet turned if cosines, sines (n, d) are given.
   keys, values: (blocks, kv_heads, block, d); row i's token t is in block table[i * table_row + t / block].
   at: (n,) own position of the new token. prefix_keys: (kv_heads, d, padded), transposed, zero behind the prefix's tokens;
   prefix_values: (kv_heads, prefix, d). out: (n, heads, d). Returns 0, or 1 where there was no memory. */
int attend(const num *q, long q_row, const num *k, long k_row, const num *v, long v_row, const num *cosines,
           const num *sines, num *keys, num *values, long block, const int64_t *table, long table_row,
           const int64_t *at, const num *prefix_keys, const num *prefix_values, long prefix, long padded, num *out,
           float scale, long n, long heads, long kv_heads, long d) {
    long group = heads / kv_heads, parts = (n + ROWS - 1) / ROWS, longest = 0;
    int failed = 0;
    for (long i = 0; i < n; i++) longest = at[i] > longest ? at[i] : longest;
    long ld = padded + (longest + L) / L * L, queries = ROWS * group;
#pragma omp parallel if (parts * kv_heads > 1)
    {
        float *query = malloc(queries * (3 * d + ld) * sizeof(float)), *sums = query + queries * d,
              *scores = sums + queries * d;
        asked *narrow = (asked *)(scores + queries * ld);
        if (!query) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (long task = 0; task < parts * kv_heads; task++) {
            if (!query) continue;
            long head = task / parts, first = task % parts * ROWS, rows = n - first < ROWS ? n - first : ROWS;
            memset(sums, 0, rows * group * d * sizeof(float));
            for (long r = 0; r < rows; r++) {
                long i = first + r, t = at[i];
                const num *c = cosines ? cosines + i * d : NULL, *s = cosines ? sines + i * d : NULL;
                for (long g = 0; g < group; g++)
                    turned(q + i * q_row + (head * group + g) * d, c, s, scale, query + (r * group + g) * d, NULL, d);
                long place = ((table[i * table_row + t / block] * kv_heads + head) * block + t % block) * d;
                turned(k + i * k_row + head * d, c, s, 1, NULL, keys + place, d);
                memcpy(values + place, v + i * v_row + head * d, d * sizeof(num));
            }
            if (prefix) {
                for (long m = 0; m < rows * group; m++) memset(scores + m * ld, 0, padded * sizeof(float));
                product(query, d, prefix_keys + head * d * padded, padded, scores, ld, rows * group, padded, d);
            }
            for (long r = 0; r < rows; r++) {
                long i = first + r, len = at[i] + 1;
                float *mine = scores + r * group * ld;
                const asked *own = narrow + r * group * d;
                for (long j = r * group * d; j < (r + 1) * group * d; j += L)
#if PAIRS > L
                    store(narrow + j, loadf(query + j));
#else
                    storef(narrow + j, loadf(query + j));
#endif
                for (long t = 0; t < len; t += block) {
                    const num *key = keys + (table[i * table_row + t / block] * kv_heads + head) * block * d;
                    long run = len - t < block ? len - t : block;
                    if (d == 64) dots(own, group, key, run, mine + padded + t, ld, 64);
                    else if (d == 128) dots(own, group, key, run, mine + padded + t, ld, 128);
                    else dots(own, group, key, run, mine + padded + t, ld, d);
                }
                for (long g = 0; g < group; g++) { /* to weights that sum to one */
                    float *x = mine + g * ld, most = -INFINITY;
                    long end = padded + (len + L - 1) / L * L;
                    for (long j = prefix; j < padded; j++) x[j] = -INFINITY;
                    for (long j = padded + len; j < end; j++) x[j] = -INFINITY;
                    vf m = splat(-INFINITY), total = splat(0);
                    for (long j = 0; j < end; j += L) m = max(m, loadf(x + j));
                    for (int j = 0; j < L; j++) most = m[j] > most ? m[j] : most;
                    for (long j = 0; j < end; j += L) {
                        vf e = vexp(loadf(x + j) - most);
                        total += e;
                        storef(x + j, e);
                    }
                    float share = 1.0f / sum(total);
                    for (long j = 0; j < end; j += L) storef(x + j, loadf(x + j) * share);
                }
            }
            if (prefix)
                product(scores, ld, prefix_values + head * prefix * d, d, sums, d, rows * group, d, prefix);
            for (long r = 0; r < rows; r++) {
                long i = first + r, len = at[i] + 1;
                for (long t = 0; t < len; t += block) {
                    const num *value = values + (table[i * table_row + t / block] * kv_heads + head) * block * d;
                    long run = len - t < block ? len - t : block;
                    product(scores + r * group * ld + padded + t, ld, value, d, sums + r * group * d, d, group, d, run);
                }
                for (long g = 0; g < group; g++)
                    for (long j = 0; j < d; j += L)
                        store(out + (i * heads + head * group + g) * d + j, loadf(sums + (r * group + g) * d + j));
            }
        }
        free(query);
    }
    return failed;
}
