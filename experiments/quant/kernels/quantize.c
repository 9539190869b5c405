/* Fake-quantization on the CPU, bit for bit what experiments/quant/block.py defines.
 *
 * One pass where the arithmetic allows: a block's amax, its scale, and its values rounded while
 * they are in cache.  Compiled once per instruction set, the best one chosen at run time.  No
 * floating-point contraction (-ffp-contract=off): every operation rounds as the definition says.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { /* lowbit_format.rounding; cpu.py has the same lists */
    NEAREST_EVEN,
    NEAREST_EVEN_CODE,  /* formats without mantissa bits */
    STOCHASTIC,         /* draws from an array */
    STOCHASTIC_COUNTER, /* draws computed from a key and the index */
    DIRECTED,           /* as ties_away, up and down say; toward zero if none is set */
    UNCLIPPED,          /* 1 for what lies between lowest and limit times its scale, 0 for the rest */
};

enum { /* lowbit_format.scale */
    FP32,
    E8M0,
    E8M0_CEIL,
    E8M0_NEAREST,
    E8M0_4_3,
    TWO_LEVEL,
    FOUR_OVER_SIX,
    UNSCALED, /* rounds x itself */
    QUEST,
    QUEST_FLOOR,
};

enum { BY_NOTHING, BY_DIVISION, BY_MULTIPLICATION, BY_CORRECTION };

typedef struct {
    int32_t rounding;
    int32_t ties_away; /* DIRECTED */
    int32_t up;
    int32_t down;
    int32_t scale;
    int32_t mantissa;
    int32_t emin_bits;    /* float32 bits of 2^emin */
    int32_t emax;         /* floor(log2(max)) */
    int32_t wide;         /* 8 exponent bits */
    int32_t exact_inverse; /* of every scale */
    float max;            /* what amax is mapped to */
    float other_max;      /* FOUR_OVER_SIX: by the other scale */
    float limit;          /* where values saturate, and at the other end */
    float lowest;
    float top;            /* two levels: what the tensor's amax is mapped to */
    int32_t stored_mantissa; /* two levels: format of a block's scale */
    int32_t stored_emin_bits;
    float stored_max;
    float clip;       /* QUEST: what a root mean square of 1 is mapped to */
    uint32_t key_low; /* STOCHASTIC_COUNTER */
    uint32_t key_high;
} lowbit_format;

typedef struct { /* of every `size` values, before all else; size 0: none */
    const float *signs; /* [columns], or NULL */
    int64_t columns;
    float factor;
    int32_t size;
} lowbit_rotation;

enum {
    MOST_VALUES = 256,  /* in a block of FOUR_OVER_SIX or QUEST */
    CACHED = 1 << 13,   /* values read twice: 32 KiB stay in the first cache */
    CHUNK = 1 << 15,    /* that one thread takes at a time: 128 KiB stay in its cache */
    PIECE = 1 << 10,    /* that pass through a buffer at a time */
    STRIP = 64,         /* columns that are quantized together */
    TALL = 256,         /* rows of them that are read twice, at most */
    MOST_ROTATED = 1 << 14, /* values of a strip: the largest rotation of a register of columns */
    STREAMED = 1 << 22, /* from here on a result is written past the caches */
};

#define SIGN_BIT INT32_MIN
#define EXPONENT_BITS 0x7F800000
#define ONE_BITS 0x3F800000
#define HALF_BIT 0x00400000 /* of a float32's own mantissa */
#define SUBNORMAL_POWER 0x00400000 /* 2^-127 */
#define SMALLEST_NORMAL 0x1p-126f
#define SQRT_2 0x1.6a09e6p+0f
#define WEYL 0x9E3779B1u /* a prime near 2^32 / golden ratio */

/* Of registers, for h = 1, 2, 4, ...: FIRST(a, b, h) has, where bit h of a lane's number is set,
 * the lane of b that is h lower, else a's own; SECOND b's own, else the lane of a that is h higher;
 * ACROSS(a, h) swaps lanes h apart. */
#define FIRST_LANE(i, h) ((i) & (h) ? LANES + (i) - (h) : (i))
#define SECOND_LANE(i, h) ((i) & (h) ? LANES + (i) : (i) + (h))
#define EVEN_LANE(i, h) ((i) & ~1)
#define ODD_LANE(i, h) ((i) | 1)
#define LANE_ACROSS(i, h) ((i) ^ (h))
#define PLUS_OR_MINUS(i, h) ((i) & (h) ? -1.0f : 1.0f)
#define FIRST(a, b, h) SHUFFLE(a, b, FIRST_LANE, h)
#define SECOND(a, b, h) SHUFFLE(a, b, SECOND_LANE, h)
#define ACROSS(a, h) SHUFFLE(a, a, LANE_ACROSS, h)

static inline int32_t bits_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float float_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Whether to leave the lower neighbour for the upper one.  `remainder`, exact, is in ulps; of the
 * smallest values it is rounded to zero, so the directed modes go by `inexact`. */
static inline int rounds_up(const lowbit_format *f, float remainder, int inexact, int32_t sign,
                            float draw, const int rounding) {
    return rounding == DIRECTED
               ? (f->ties_away & (remainder >= 0.5f)) | (inexact & (sign ? f->down : f->up))
               : draw < remainder;
}

/* Uniform in [0, 1), 24 bits, from index * WEYL + key_low: kernels/noise.py. */
static inline float uniform(uint32_t weyl, uint32_t key_high) {
    uint32_t h = weyl ^ weyl >> 16;
    h = (h + key_high) * 0x21F0AAADu;
    h ^= h >> 15;
    h *= 0x735A2D97u;
    return (float)(int32_t)(h >> 8) * 0x1p-24f;
}

/* Whether q = x * (1 / scale), corrected once by its remainder, may stand for x / scale.
 *
 * Markstein's theorem wants q within one ulp, which one multiplication does not promise.  But the
 * corrected q errs by less than 2^-22 ulps before it is rounded, so only quotients that close to a
 * midpoint could come out wrong: of these there are 46,517,418 pairs of significands, and
 * tests/correct_division.c tries each.  The remainder is exact for x >= 2^-100; below, with this
 * range of scales, x is less than half the smallest step either way. */
static inline int correctable(const lowbit_format *f, float scale) {
    const int step_exponent = (f->emin_bits >> 23) - 127 - f->mantissa;
    return step_exponent >= -28 && scale >= 0x1p-70f && scale <= 0x1p70f;
}

/* floor(log2(amax)), below -127 for zero.  A subnormal's bits, as a number, have its exponent. */
static inline int floor_log2(int32_t amax_bits) {
    const int subnormal = (bits_of((float)amax_bits) >> 23) - 127 - 149;
    const int normal = (amax_bits >> 23) - 127;
    return amax_bits >> 23 ? normal : subnormal;
}

/* 2^exponent, the exponent cut to -127..128; 2^128 is infinite. */
static inline float power_of_two(int exponent) {
    exponent = exponent < -127 ? -127 : exponent;
    exponent = exponent > 128 ? 128 : exponent;
    const int32_t bits = (exponent + 127) << 23;
    return float_of(bits > SUBNORMAL_POWER ? bits : SUBNORMAL_POWER);
}

static inline float e8m0(int exponent) { return power_of_two(exponent > 127 ? 127 : exponent); }

/* To the nearest value of the format that stores a block's scale, and at least its smallest. */
static inline float stored_scale(const lowbit_format *f, float wanted) {
    int32_t power = bits_of(wanted) & EXPONENT_BITS;
    power = power > f->stored_emin_bits ? power : f->stored_emin_bits;
    const float shift = float_of(power + ((23 - f->stored_mantissa) << 23));
    const float smallest = float_of(f->stored_emin_bits - (f->stored_mantissa << 23));
    float rounded = (wanted + shift) - shift;
    rounded = rounded > f->stored_max ? f->stored_max : rounded;
    return rounded < smallest ? smallest : rounded;
}

/* experiments/quant/scale.py, rule by rule; NaN where a block's amax is not finite.  Where an
 * exponent lies outside -127..127 the power of two is cut, but so is then the result. */
static inline float block_scale(const lowbit_format *f, int32_t amax_bits, float tensor_scale,
                                const int rule) {
    const float amax = float_of(amax_bits);
    const int exponent = floor_log2(amax_bits) - f->emax;
    float scale;
    if (rule == FP32) {
        scale = amax / f->max;
        scale = scale > SMALLEST_NORMAL ? scale : SMALLEST_NORMAL;
    } else if (rule == E8M0) {
        scale = e8m0(exponent);
    } else if (rule == E8M0_CEIL) {
        scale = e8m0(exponent + (f->max * power_of_two(exponent) < amax));
    } else if (rule == E8M0_NEAREST) {
        const float ratio = amax * power_of_two(-exponent) / f->max;
        scale = e8m0(exponent + (ratio >= SQRT_2) - (ratio < SQRT_2 / 2));
    } else if (rule == E8M0_4_3) {
        scale = e8m0(exponent) / 0.75f;
    } else {
        scale = stored_scale(f, amax / f->max / tensor_scale) * tensor_scale;
    }
    return amax_bits >= EXPONENT_BITS ? NAN : scale;
}

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
#define FENCE() _mm_sfence()
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma")))
#define NAME(f) f##_avx512
#define LANES 16
#define HAS_FMA 1
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define MAX(a, b) _mm512_max_epi32((__m512i)(a), (__m512i)(b))
#define EVEN(a) _mm512_moveldup_ps(a)
#define ODD(a) _mm512_movehdup_ps(a)
#define STREAM(to, a) _mm512_stream_ps(to, a)
#include "quantize.h"
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) f##_avx2
#define LANES 8
#define HAS_FMA 1
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define MAX(a, b) _mm256_max_epi32((__m256i)(a), (__m256i)(b))
#define EVEN(a) _mm256_moveldup_ps(a)
#define ODD(a) _mm256_movehdup_ps(a)
#define STREAM(to, a) _mm256_stream_ps(to, a)
#include "quantize.h"
#else
#define X86 0
#define FENCE()
#endif
#define TARGET
#define NAME(f) f##_plain
#define LANES 4
#define HAS_FMA 0
#define FMA(a, b, c) ((a) * (b) + (c))
#define MAX(a, b) (((a) & ((a) > (b))) | ((b) & ~((a) > (b))))
#define EVEN(a) SHUFFLE(a, a, EVEN_LANE, 1)
#define ODD(a) SHUFFLE(a, a, ODD_LANE, 1)
#if X86
#define STREAM(to, a) _mm_stream_ps(to, a)
#else
#define STREAM(to, a) memcpy(to, &(a), sizeof(a))
#endif
#include "quantize.h"

typedef struct {
    const char *name;
    int32_t (*amax)(const float *, int64_t);
    void (*scales)(const lowbit_format *, const int32_t *, int64_t, float, float *, float *);
    void (*tiles)(const lowbit_format *, const float *, float *, const float *, int64_t, int64_t,
                  int64_t, int64_t, int64_t, float);
    void (*span)(const lowbit_format *, const float *, float *, const float *, int64_t, int64_t,
                 float);
    void (*stream)(const float *, float *, int64_t);
    void (*column_amax)(const float *, int64_t, int64_t, int64_t, int32_t *);
    void (*strip)(const lowbit_format *, const lowbit_rotation *, const float *, float *,
                  const float *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                  float, const float *, const float *);
    void (*rotate)(const lowbit_rotation *, const float *, float *, int64_t, int64_t);
    void (*rotate_columns)(const lowbit_rotation *, const float *, int64_t, float *, int64_t,
                           int64_t, int64_t, int64_t);
} kernels;

#define KERNELS(S)                                                                                 \
    {#S, amax_##S, scales_##S, tiles_##S, span_##S, stream_##S, column_amax_##S, strip_##S,       \
     rotate_##S, rotate_columns_##S}
static const kernels ALL[] = {
#if X86
    KERNELS(avx512),
    KERNELS(avx2),
#endif
    KERNELS(plain),
};

static int supported(const kernels *set) {
#if X86
    if (set->amax == amax_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("fma");
    if (set->amax == amax_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return set->amax == amax_plain;
}

static const kernels *active;

int64_t lowbit_format_size(void) { return sizeof(lowbit_format); }

/* Choose the named instruction set, or the best one for "".  Returns its name, NULL if this
 * processor lacks it.  Not to be called while another thread quantizes. */
const char *lowbit_select(const char *name) {
    for (size_t i = 0; i < sizeof ALL / sizeof *ALL; i++)
        if (supported(ALL + i) && (!*name || !strcmp(name, ALL[i].name))) {
            active = ALL + i;
            return active->name;
        }
    return NULL;
}

typedef struct {
    lowbit_format format;
    const lowbit_rotation *rotation; /* NULL for none */
    const float *x;
    float *out;
    const float *noise;
    int streamed;
    int threads;
} job;

/* n values as they are to be quantized: those of x, or rotated ones in `own`. */
static const float *values(const job *j, int64_t first, int64_t n, float *own) {
    if (!j->rotation)
        return j->x + first;
    active->rotate(j->rotation, j->x + first, own, first, n);
    return own;
}

/* The next PIECE values, which would otherwise be waited for while nothing is written. */
static inline void fetch(const float *x) {
    for (int64_t i = 0; i < PIECE; i += 16)
        __builtin_prefetch(x + i, 0, 2);
}

static int32_t amax_of(const job *j, int64_t first, int64_t n) {
    int32_t amax = 0;
    const int64_t step = j->rotation ? PIECE : CHUNK;
#pragma omp parallel for num_threads(j->threads) if (j->threads > 1) reduction(max : amax)
    for (int64_t i = 0; i < n; i += step) {
        _Alignas(64) float own[PIECE];
        const int64_t length = n - i < step ? n - i : step;
        if (j->rotation)
            fetch(j->x + first + i + step);
        const int32_t part = active->amax(values(j, first + i, length, own), length);
        amax = part > amax ? part : amax;
    }
    return amax;
}

/* out = x rotated, all n values; returns their amax if that is `wanted`, else 0. */
static int32_t rotate_all(const job *j, int64_t n, int wanted) {
    int32_t amax = 0;
#pragma omp parallel for num_threads(j->threads) if (j->threads > 1) reduction(max : amax)
    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t end = n - i < CHUNK ? n : i + CHUNK;
        for (int64_t k = i; k < end; k += PIECE) {
            const int64_t length = end - k < PIECE ? end - k : PIECE;
            _Alignas(64) float own[PIECE];
            float *rotated = j->streamed ? own : j->out + k;
            active->rotate(j->rotation, j->x + k, rotated, k, length);
            if (wanted) {
                const int32_t part = active->amax(rotated, length);
                amax = part > amax ? part : amax;
            }
            if (j->streamed) {
                fetch(j->x + k + PIECE);
                active->stream(own, j->out + k, length);
            }
        }
        if (j->streamed)
            FENCE();
    }
    return amax;
}

static int two_levels(const lowbit_format *f) {
    return f->scale == TWO_LEVEL || f->scale == FOUR_OVER_SIX;
}

static float two_level_scale(const lowbit_format *f, int32_t amax_bits) {
    if (amax_bits >= EXPONENT_BITS)
        return NAN;
    const float scale = float_of(amax_bits) / f->top;
    return scale > SMALLEST_NORMAL ? scale : SMALLEST_NORMAL;
}

/* n <= CHUNK values, a multiple of `unit`, which share `scale`; or, if block is not 0, every
 * `block` of them a scale of their own, on top of this one. */
static void quantize_chunk(const job *j, int64_t first, int64_t n, int64_t unit, int64_t block,
                           float scale) {
    _Alignas(64) float own[CHUNK], result[CHUNK];
    const int64_t buffered = unit < PIECE ? PIECE / unit * unit : unit;
    const int64_t step = j->rotation || j->streamed ? buffered : n;
    for (int64_t i = first; i < first + n; i += step) {
        const int64_t length = first + n - i < step ? first + n - i : step;
        const float *x = values(j, i, length, own);
        const float *noise = j->noise ? j->noise + i : NULL;
        float *out = j->streamed ? result : j->out + i;
        if (block)
            active->tiles(&j->format, x, out, noise, i, length / block, block, 1, 0, scale);
        else
            active->span(&j->format, x, out, noise, i, length, scale);
        if (j->streamed) {
            fetch(j->x + i + step);
            active->stream(result, j->out + i, length);
        }
    }
    if (j->streamed)
        FENCE();
}

/* n values in chunks that are multiples of `unit`; otherwise as above. */
static void quantize_all(const job *j, int64_t first, int64_t n, int64_t unit, int64_t block,
                         float scale) {
    const int64_t step = CHUNK / unit * unit;
#pragma omp parallel for num_threads(j->threads) if (j->threads > 1)
    for (int64_t i = 0; i < n; i += step)
        quantize_chunk(j, first + i, n - i < step ? n - i : step, unit, block, scale);
}

static lowbit_format with_key(const lowbit_format *format, uint64_t key) {
    lowbit_format keyed = *format;
    keyed.key_low = (uint32_t)key;
    keyed.key_high = (uint32_t)(key >> 32);
    return keyed;
}

/* out = quantize(x): n values, every `block` consecutive ones share a scale; noise only for
 * STOCHASTIC.  x and out do not overlap.  If hadamard is not 0 x is rotated first, as by
 * lowbit_rotate; the larger one of hadamard and block is then a multiple of the other. */
void lowbit_quantize(const lowbit_format *format, const float *x, float *out, const float *noise,
                     uint64_t key, int64_t n, int64_t block, const float *signs, int64_t columns,
                     float factor, int hadamard, int threads) {
    const lowbit_rotation rotation = {signs, columns, factor, hadamard};
    job j = {with_key(format, key), hadamard ? &rotation : NULL, x, out, noise,
             n >= STREAMED, threads};
    const lowbit_format *f = &j.format;
    const int64_t size = hadamard ? hadamard : 1, unit = block < size ? size : block;
    if (f->scale == UNSCALED) {
        quantize_all(&j, 0, n, size, 0, 1.0f);
        return;
    }
    const int apart = block <= MOST_VALUES || (n / block >= threads && unit <= CHUNK);
    const int overall = two_levels(f) || (!apart && block == n);
    int32_t amax = 0;
    if (hadamard && (overall || !apart) && !j.streamed) { /* not twice: from here on in place */
        amax = rotate_all(&j, n, overall);
        j.rotation = NULL;
        j.x = out;
    } else if (overall) {
        amax = amax_of(&j, 0, n);
    }
    const float tensor_scale = two_levels(f) ? two_level_scale(f, amax) : 0.0f;
    if (apart) {
        quantize_all(&j, 0, n, unit, block, tensor_scale);
        return;
    }
    for (int64_t first = 0; first < n; first += block) {
        if (block < n)
            amax = amax_of(&j, first, block);
        float scale, inverse;
        active->scales(f, &amax, 1, tensor_scale, &scale, &inverse);
        quantize_all(&j, first, block, size, 0, scale);
    }
}

/* out = quantize(x): rows of `columns`, tiles of `size` x `size` share a scale.  Otherwise as
 * above. */
void lowbit_quantize_tiles(const lowbit_format *format, const float *x, float *out,
                           const float *noise, uint64_t key, int64_t rows, int64_t columns,
                           int64_t size, int threads) {
    const int64_t n = rows * columns, step = size * columns;
    const job j = {with_key(format, key), NULL, x, out, noise, 0, threads};
    const float tensor_scale =
        two_levels(format) ? two_level_scale(format, amax_of(&j, 0, n)) : 0.0f;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i += step)
        active->tiles(&j.format, x + i, out + i, noise ? noise + i : noise, i, columns / size, size,
                      size, columns, tensor_scale);
}

/* Rows begin..end in strips of `height`, those of the same rows one after the other, as they lie in
 * memory.  Every `block` rows of a column share a scale, or all of them those given if not NULL. */
static void quantize_strips(const job *j, int64_t rows, int64_t columns, int64_t begin, int64_t end,
                            int64_t height, int64_t block, float tensor_scale, const float *scale,
                            const float *inverse) {
    const int64_t fitting = j->rotation ? MOST_ROTATED / height : STRIP;
    const int64_t width = fitting < STRIP ? fitting : STRIP;
    const int64_t down = (end - begin + height - 1) / height, across = (columns + width - 1) / width;
#pragma omp parallel for num_threads(j->threads) if (j->threads > 1)
    for (int64_t i = 0; i < down * across; i++) {
        const int64_t row = begin + i / across * height, column = i % across * width;
        active->strip(&j->format, j->rotation, j->x, j->out, j->noise, rows, columns, row,
                      end - row < height ? end - row : height, column,
                      columns - column < width ? columns - column : width, block, tensor_scale,
                      scale, inverse);
    }
}

/* out = x rotated down its columns; returns amax. */
static int32_t rotate_strips(const job *j, int64_t rows, int64_t columns) {
    const int64_t size = j->rotation->size, across = (columns + STRIP - 1) / STRIP;
    int32_t amax = 0;
#pragma omp parallel for num_threads(j->threads) if (j->threads > 1) reduction(max : amax)
    for (int64_t i = 0; i < rows / size * across; i++) {
        const int64_t row = i / across * size, column = i % across * STRIP;
        const int64_t width = columns - column < STRIP ? columns - column : STRIP;
        float *out = j->out + row * columns + column;
        active->rotate_columns(j->rotation, j->x + row * columns + column, columns, out, columns,
                               row, size, width);
        int32_t own[STRIP] = {0};
        active->column_amax(out, size, columns, width, own);
        for (int64_t k = 0; k < width; k++)
            amax = own[k] > amax ? own[k] : amax;
    }
    return amax;
}

/* The transpose of out = quantize of the transpose of x; both lie as [rows, columns].  Every
 * `block` consecutive rows of a column share a scale, or all values if block is larger than rows;
 * with `tiles` those of `block` columns, too.  Noise and the index of a draw are those of the
 * transpose, as is a rotation, of which rows is a multiple.  Returns 0, or 1 if there is no memory
 * for the scales. */
int lowbit_quantize_columns(const lowbit_format *format, const float *x, float *out,
                            const float *noise, uint64_t key, int64_t rows, int64_t columns,
                            int64_t block, int tiles, const float *signs, float factor,
                            int hadamard, int threads) {
    const lowbit_rotation rotation = {signs, rows, factor, hadamard};
    job j = {with_key(format, key), hadamard ? &rotation : NULL, x, out, noise, 0, threads};
    const lowbit_format *f = &j.format;
    const int whole = block > rows, at_once = block <= TALL && !whole && !tiles;
    int32_t amax = 0;
    if (hadamard && (!at_once || two_levels(f))) { /* not twice: from here on in place */
        amax = rotate_strips(&j, rows, columns);
        j.rotation = NULL;
        j.x = out;
    } else if (whole || two_levels(f)) {
        amax = amax_of(&j, 0, rows * columns);
    }
    const float tensor_scale = two_levels(f) ? two_level_scale(f, amax) : 0.0f;
    if (at_once) {
        const int64_t height = j.rotation && hadamard > block ? hadamard : block;
        quantize_strips(&j, rows, columns, 0, rows, height, block, tensor_scale, NULL, NULL);
        return 0;
    }
    int32_t *column_amax = malloc((size_t)columns * (sizeof(int32_t) + 2 * sizeof(float)));
    if (!column_amax)
        return 1;
    float *scale = (float *)(column_amax + columns), *inverse = scale + columns;
    const int64_t down = whole ? rows : block, sharing = tiles ? block : 1;
    const int64_t across = sharing < STRIP ? STRIP / sharing * sharing : sharing;
    for (int64_t row = 0; row < rows; row += down) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int64_t c = 0; c < columns; c += across) {
            const int64_t width = columns - c < across ? columns - c : across;
            int32_t *own = column_amax + c;
            for (int64_t i = 0; i < width; i++)
                own[i] = whole ? amax : 0;
            if (!whole)
                active->column_amax(j.x + row * columns + c, block, columns, width, own);
            for (int64_t i = 0; i < width; i += sharing) {
                for (int64_t k = i + 1; k < i + sharing; k++)
                    own[i] = own[k] > own[i] ? own[k] : own[i];
                for (int64_t k = i + 1; k < i + sharing; k++)
                    own[k] = own[i];
            }
            active->scales(f, own, width, tensor_scale, scale + c, inverse + c);
        }
        quantize_strips(&j, rows, columns, row, row + down, 32, 32, tensor_scale, scale, inverse);
    }
    free(column_amax);
    return 0;
}

/* out = x rotated, n values, rows of `columns`: multiplied by signs[columns], unless NULL, then
 * every `hadamard` (16 to 1024) of them by the Walsh-Hadamard matrix, then by the factor. */
void lowbit_rotate(const float *x, float *out, int64_t n, const float *signs, int64_t columns,
                   float factor, int hadamard, int threads) {
    const lowbit_rotation rotation = {signs, columns, factor, hadamard};
    const job j = {.rotation = &rotation, .x = x, .out = out, .streamed = n >= STREAMED,
                   .threads = threads};
    rotate_all(&j, n, 0);
}

/* n random signs: -1 where the draw of kernels/noise.py is below 1/2. */
void lowbit_signs(float *out, uint64_t key, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        out[i] = uniform((uint32_t)i * WEYL + (uint32_t)key, (uint32_t)(key >> 32)) < 0.5f ? -1.0f
                                                                                          : 1.0f;
}
