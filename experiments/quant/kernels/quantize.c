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

enum { /* lowbit_format.rounding; kernels/__init__.py has the same list */
    NEAREST_EVEN,
    NEAREST_EVEN_CODE,  /* formats without mantissa bits */
    STOCHASTIC,         /* draws from an array */
    STOCHASTIC_COUNTER, /* draws computed from a key and the index */
    DIRECTED,           /* as ties_away, up and down say; toward zero if none is set */
};

enum { FP32, E8M0, E8M0_CEIL, E8M0_NEAREST, E8M0_4_3, TWO_LEVEL }; /* lowbit_format.scale */

enum { BY_DIVISION, BY_MULTIPLICATION, BY_CORRECTION };

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
    int32_t power_of_two; /* 1 / scale is exact */
    float max;            /* what amax is mapped to */
    float limit;          /* where values saturate */
    float top;            /* TWO_LEVEL: what the tensor's amax is mapped to */
    int32_t stored_mantissa; /* TWO_LEVEL: format of a block's scale */
    int32_t stored_emin_bits;
    float stored_max;
    uint32_t key_low; /* STOCHASTIC_COUNTER */
    uint32_t key_high;
} lowbit_format;

#define SIGN_BIT INT32_MIN
#define EXPONENT_BITS 0x7F800000
#define ONE_BITS 0x3F800000
#define SUBNORMAL_POWER 0x00400000 /* 2^-127 */
#define SMALLEST_NORMAL 0x1p-126f
#define SQRT_2 0x1.6a09e6p+0f
#define WEYL 0x9E3779B1u /* a prime near 2^32 / golden ratio */

typedef float eight __attribute__((vector_size(32)));
typedef int32_t eight_int __attribute__((vector_size(32)));
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (eight_int){__VA_ARGS__})
#endif

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
static inline float rounds_up(const lowbit_format *f, float remainder, int inexact, int32_t sign,
                              float draw, const int rounding) {
    const int up = rounding == DIRECTED
                       ? (f->ties_away & (remainder >= 0.5f)) | (inexact & (sign ? f->down : f->up))
                       : draw < remainder;
    return up ? 1.0f : 0.0f;
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
#define HAS_FMA 1
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma")))
#define NAME(f) f##_avx512
#include "quantize.h"
#undef TARGET
#undef NAME
#undef INLINE
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) f##_avx2
#include "quantize.h"
#undef TARGET
#undef NAME
#undef INLINE
#undef HAS_FMA
#define X86 1
#else
#define X86 0
#endif
#define HAS_FMA 0
#define TARGET
#define NAME(f) f##_plain
#include "quantize.h"

typedef struct {
    const char *name;
    int32_t (*amax)(const float *, int64_t);
    void (*scales)(const lowbit_format *, const int32_t *, int64_t, float, float *, float *);
    void (*blocks)(const lowbit_format *, const float *, float *, const float *, int64_t, int64_t,
                   int64_t, float);
    void (*span)(const lowbit_format *, const float *, float *, const float *, int64_t, int64_t,
                 float);
    void (*column_amax)(const float *, int64_t, int64_t, int64_t, int32_t *);
    void (*rectangle)(const lowbit_format *, const float *, float *, const float *, int64_t,
                      int64_t, const int64_t[4], int64_t, float, const float *, const float *);
    void (*rotate)(const float *, float *, const float *, int64_t, int64_t, int64_t, float, int);
} kernels;

static const kernels ALL[] = {
#if X86
    {"avx512", amax_avx512, scales_avx512, blocks_avx512, span_avx512, column_amax_avx512, rectangle_avx512, rotate_avx512},
    {"avx2", amax_avx2, scales_avx2, blocks_avx2, span_avx2, column_amax_avx2, rectangle_avx2, rotate_avx2},
#endif
    {"plain", amax_plain, scales_plain, blocks_plain, span_plain, column_amax_plain, rectangle_plain, rotate_plain},
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

enum {
    CHUNK = 1 << 15, /* values that one thread takes at a time: 128 KiB stay in its cache */
    SQUARE = 256,    /* rows and columns that one thread transposes at a time */
};

static int32_t amax_of(const float *x, int64_t n, int threads) {
    int32_t amax = 0;
#pragma omp parallel for num_threads(threads) if (threads > 1) reduction(max : amax)
    for (int64_t i = 0; i < n; i += CHUNK) {
        const int32_t part = active->amax(x + i, n - i < CHUNK ? n - i : CHUNK);
        amax = part > amax ? part : amax;
    }
    return amax;
}

static float two_level_scale(const lowbit_format *f, int32_t amax_bits) {
    if (amax_bits >= EXPONENT_BITS)
        return NAN;
    const float scale = float_of(amax_bits) / f->top;
    return scale > SMALLEST_NORMAL ? scale : SMALLEST_NORMAL;
}

static lowbit_format with_key(const lowbit_format *format, uint64_t key) {
    lowbit_format keyed = *format;
    keyed.key_low = (uint32_t)key;
    keyed.key_high = (uint32_t)(key >> 32);
    return keyed;
}

/* out = quantize(x): n values, every `block` consecutive ones share a scale; noise only for
 * STOCHASTIC.  x and out do not overlap. */
void lowbit_quantize(const lowbit_format *format, const float *x, float *out, const float *noise,
                     uint64_t key, int64_t n, int64_t block, int threads) {
    const lowbit_format keyed = with_key(format, key), *f = &keyed;
    const int64_t count = n / block;
    const float tensor_scale =
        f->scale == TWO_LEVEL ? two_level_scale(f, amax_of(x, n, threads)) : 0.0f;
    if (count < threads || block > CHUNK) {
        for (int64_t b = 0; b < count; b++) {
            const int64_t first = b * block, last = first + block;
            const int32_t amax = amax_of(x + first, block, threads);
            float scale, inverse;
            active->scales(f, &amax, 1, tensor_scale, &scale, &inverse);
#pragma omp parallel for num_threads(threads) if (threads > 1)
            for (int64_t i = first; i < last; i += CHUNK)
                active->span(f, x, out, noise, i, last - i < CHUNK ? last : i + CHUNK, scale);
        }
        return;
    }
    const int64_t step = CHUNK / block;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t b = 0; b < count; b += step)
        active->blocks(f, x, out, noise, b, count - b < step ? count : b + step, block,
                       tensor_scale);
}

/* Rows begin..end of x into out, in squares: a column's values lie on as many pages as it has
 * rows, so work down whole columns would miss the TLB at every value. */
static void transpose_rows(const lowbit_format *f, const float *x, float *out, const float *noise,
                           int64_t rows, int64_t columns, int64_t begin, int64_t end,
                           int64_t block, float tensor_scale, const float *scale,
                           const float *inverse, int threads) {
    const int64_t height = block < SQUARE ? SQUARE / block * block : SQUARE;
    const int64_t down = (end - begin + height - 1) / height;
    const int64_t across = (columns + SQUARE - 1) / SQUARE;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < down * across; i++) {
        const int64_t row = begin + i / across * height, column = i % across * SQUARE;
        const int64_t at[4] = {row, end - row < height ? end : row + height, column,
                               columns - column < SQUARE ? columns : column + SQUARE};
        active->rectangle(f, x, out, noise, rows, columns, at, scale ? at[1] - row : block,
                          tensor_scale, scale, inverse);
    }
}

/* out [columns, rows] = quantize of the transpose of x [rows, columns]: every `block` consecutive
 * rows of a column share a scale, or all values if block is larger than rows.  The noise and the
 * index of a draw are as out lies.  Returns 0, or 1 if there is no memory for the scales. */
int lowbit_quantize_transposed(const lowbit_format *format, const float *x, float *out,
                               const float *noise, uint64_t key, int64_t rows, int64_t columns,
                               int64_t block, int threads) {
    const lowbit_format keyed = with_key(format, key), *f = &keyed;
    const int whole = block > rows;
    int32_t amax = 0;
    if (whole || f->scale == TWO_LEVEL)
        amax = amax_of(x, rows * columns, threads);
    const float tensor_scale = f->scale == TWO_LEVEL ? two_level_scale(f, amax) : 0.0f;
    if (block <= SQUARE && !whole) {
        transpose_rows(f, x, out, noise, rows, columns, 0, rows, block, tensor_scale, NULL, NULL,
                       threads);
        return 0;
    }
    int32_t *column_amax = malloc((size_t)columns * (sizeof(int32_t) + 2 * sizeof(float)));
    if (!column_amax)
        return 1;
    float *scale = (float *)(column_amax + columns), *inverse = scale + columns;
    const int64_t step = whole ? rows : block;
    for (int64_t row = 0; row < rows; row += step) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int64_t c = 0; c < columns; c += SQUARE) {
            const int64_t width = columns - c < SQUARE ? columns - c : SQUARE;
            for (int64_t j = 0; j < width; j++)
                column_amax[c + j] = whole ? amax : 0;
            if (!whole)
                active->column_amax(x + row * columns + c, block, columns, width, column_amax + c);
            active->scales(f, column_amax + c, width, tensor_scale, scale + c, inverse + c);
        }
        transpose_rows(f, x, out, noise, rows, columns, row, row + step, step, tensor_scale, scale,
                       inverse, threads);
    }
    free(column_amax);
    return 0;
}

/* out = x rotated: every `size` (8 to 1024) consecutive values by the Walsh-Hadamard matrix, after
 * signs[columns] where those are not NULL, times `factor`.  n is a multiple of columns, that of
 * size. */
void lowbit_rotate(const float *x, float *out, const float *signs, int64_t n, int64_t columns,
                   float factor, int size, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i += CHUNK)
        active->rotate(x, out, signs, i, n - i < CHUNK ? n : i + CHUNK, columns, factor, size);
}
