/* The loops, once per instruction set: quantize.c includes this file several times.
 *
 * The including file sets NAME(f), which adds the instruction set's suffix, TARGET, the function
 * attribute that selects it, LANES, the floats in a register, HAS_FMA, and for registers
 * FMA(a, b, c), MAX(a, b), EVEN(a) and ODD(a), each of which has those lanes of a twice, and
 * STREAM(to, a).  Most loops are plain C that the compiler vectorises; parameters called `const`
 * are constants after inlining, so that every combination becomes a loop without branches.
 */

#define INLINE TARGET static inline __attribute__((always_inline))

#if HAS_FMA
#define MULTIPLY_ADD(a, b, c) __builtin_fmaf(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

typedef float NAME(vector) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(ints) __attribute__((vector_size(4 * LANES)));

#if LANES == 16
#define EACH_LANE(F, h)                                                                            \
    F(0, h), F(1, h), F(2, h), F(3, h), F(4, h), F(5, h), F(6, h), F(7, h), F(8, h), F(9, h),      \
        F(10, h), F(11, h), F(12, h), F(13, h), F(14, h), F(15, h)
#define FOR_LONG_DISTANCES(F) F(2) F(4) F(8)
#elif LANES == 8
#define EACH_LANE(F, h) F(0, h), F(1, h), F(2, h), F(3, h), F(4, h), F(5, h), F(6, h), F(7, h)
#define FOR_LONG_DISTANCES(F) F(2) F(4)
#else
#define EACH_LANE(F, h) F(0, h), F(1, h), F(2, h), F(3, h)
#define FOR_LONG_DISTANCES(F) F(2)
#endif
#define FOR_DISTANCES(F) F(1) FOR_LONG_DISTANCES(F)
#ifdef __clang__
#define SHUFFLE(a, b, LANE, h) __builtin_shufflevector(a, b, EACH_LANE(LANE, h))
#else
#define SHUFFLE(a, b, LANE, h) __builtin_shuffle(a, b, (NAME(ints)){EACH_LANE(LANE, h)})
#endif

/* One value already divided by its scale, to the grid: exponent below 8 bits, |scaled| < 2^66.
 * Nearest leaves the sign of a zero open, the others give the magnitude.
 *
 * Nearest: adding 1.5 * 2^23 ulps makes the adder round to a multiple of the ulp, ties to even.
 * Without mantissa bits the even *code* decides: 2^k has code k - emin + 1, and where that is even
 * one ulp more is added, so that ties go the other way.
 */
INLINE float NAME(round)(const lowbit_format *f, float scaled, int32_t sign, float draw,
                         const int rounding) {
    int32_t power = bits_of(scaled) & EXPONENT_BITS;
    power = power > f->emin_bits ? power : f->emin_bits;
    if (rounding == NEAREST_EVEN || rounding == NEAREST_EVEN_CODE) {
        int32_t shift_bits = power + (((23 - f->mantissa) << 23) | HALF_BIT);
        if (rounding == NEAREST_EVEN_CODE)
            shift_bits |= ((power ^ f->emin_bits) >> 23) & 1;
        const float shift = float_of(shift_bits);
        return (scaled + shift) - shift;
    }
    const float magnitude = float_of(bits_of(scaled) & ~SIGN_BIT);
    const int32_t ulp_bits = power - (f->mantissa << 23);
    const float ulp = float_of(ulp_bits);
    const float steps = magnitude * float_of(2 * ONE_BITS - ulp_bits); /* magnitude / ulp < 2^11 */
    const float lower = (float)(int32_t)steps;
    const int inexact = lower * ulp != magnitude;
    const float upper = lower + 1.0f;
    return (rounds_up(f, steps - lower, inexact, sign, draw, rounding) ? upper : lower) * ulp;
}

/* The same for 8 exponent bits.  Such a format has float32's exponents, so its numbers are the
 * float32 bit patterns without their lowest bits, subnormals included; a carry goes where it
 * should, and the even code is the even pattern. */
INLINE float NAME(round_wide)(const lowbit_format *f, float scaled, int32_t sign, float draw,
                              const int rounding) {
    const int shift = 23 - f->mantissa;
    const uint32_t bits = (uint32_t)(bits_of(scaled) & ~SIGN_BIT), unit = 1u << shift;
    const uint32_t lower = bits & -unit, rest = bits & (unit - 1);
    const uint32_t limit = (uint32_t)bits_of(f->limit);
    uint32_t rounded;
    if (rounding == NEAREST_EVEN || rounding == NEAREST_EVEN_CODE) {
        rounded = (bits + unit / 2 - 1 + (bits >> shift & 1)) & -unit;
    } else {
        const float remainder = (float)(int32_t)rest * float_of(ONE_BITS - (shift << 23));
        rounded = lower + (rounds_up(f, remainder, rest != 0, sign, draw, rounding) ? unit : 0);
    }
    rounded = rounded < limit ? rounded : limit; /* it may have gone up to 2^128 */
    return float_of((int32_t)(bits > EXPONENT_BITS ? bits : rounded)); /* a NaN stays */
}

/* scale * round(x / scale), the sign of zero kept. */
INLINE float NAME(value)(const lowbit_format *f, float x, float scale, float inverse, float draw,
                         const int rounding, const int scaling, const int wide) {
    if (rounding == UNCLIPPED)
        return (float)((x >= scale * f->lowest) & (x <= scale * f->limit));
    float scaled;
    if (scaling == BY_NOTHING) {
        scaled = x;
    } else if (scaling == BY_DIVISION) {
        scaled = x / scale;
    } else {
        scaled = x * inverse;
        if (scaling == BY_CORRECTION) /* Markstein: the quotient, correctly rounded */
            scaled = MULTIPLY_ADD(MULTIPLY_ADD(-scaled, scale, x), inverse, scaled);
    }
    scaled = scaled > f->limit ? f->limit : scaled; /* a NaN stays */
    scaled = scaled < f->lowest ? f->lowest : scaled;
    const int32_t sign = bits_of(x) & SIGN_BIT;
    float rounded = wide ? NAME(round_wide)(f, scaled, sign, draw, rounding)
                         : NAME(round)(f, scaled, sign, draw, rounding);
    if (scaling == BY_NOTHING)
        rounded = MULTIPLY_ADD(x, 0.0f, rounded); /* NaN for an infinity, as elsewhere by its scale */
    const float result = __builtin_copysignf(rounded, x);
    return scaling == BY_NOTHING ? result : result * scale;
}

/* n values that share a scale; out may be x.  Here as below, `first` is the place of the first one
 * in the tensor, as its draw has it. */
INLINE void NAME(run)(const lowbit_format *f, const float *x, float *out,
                      const float *restrict noise, int64_t first, int64_t n, float scale,
                      float inverse, const int rounding, const int scaling, const int wide) {
    const uint32_t weyl = (uint32_t)first * WEYL + f->key_low;
    _Pragma("GCC ivdep") for (int i = 0; i < n; i++) {
        const float draw = rounding == STOCHASTIC ? noise[i]
                           : rounding == STOCHASTIC_COUNTER
                               ? uniform(weyl + (uint32_t)i * WEYL, f->key_high)
                               : 0.0f;
        out[i] = NAME(value)(f, x[i], scale, inverse, draw, rounding, scaling, wide);
    }
}

/* Bits of the largest magnitude; a NaN's are larger than an infinity's, and those than all. */
INLINE int32_t NAME(amax_of)(const float *restrict x, int64_t n) {
    int32_t amax = 0;
    for (int64_t i = 0; i < n; i++) {
        const int32_t magnitude = bits_of(x[i]) & ~SIGN_BIT;
        amax = magnitude > amax ? magnitude : amax;
    }
    return amax;
}

/* The same, each quarter on its own: four streams keep more of the memory's reads in flight. */
TARGET static int32_t NAME(amax)(const float *restrict x, int64_t n) {
    const int64_t quarter = n / 4;
    int32_t amax = NAME(amax_of)(x + 4 * quarter, n - 4 * quarter);
    for (int64_t i = 0; i < quarter; i++)
        for (int k = 0; k < 4; k++) {
            const int32_t magnitude = bits_of(x[k * quarter + i]) & ~SIGN_BIT;
            amax = magnitude > amax ? magnitude : amax;
        }
    return amax;
}

/* amax of LANES tiles next to each other, `rows` x `width`, width a multiple of LANES: two
 * registers become one, its lanes in turn from either, until each lane is a tile. */
INLINE void NAME(group_amax)(const float *x, int64_t width, int64_t rows, int64_t stride,
                             int32_t *amax) {
    NAME(ints) v[LANES];
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) {
        NAME(ints) own = {0};
        for (int64_t row = 0; row < rows; row++)
            for (int64_t j = 0; j < width; j += LANES) {
                NAME(ints) bits;
                memcpy(&bits, x + row * stride + i * width + j, sizeof bits);
                bits &= ~SIGN_BIT;
                own = (NAME(ints))MAX(own, bits);
            }
        v[i] = own;
    }
#define HALVE(h)                                                                                   \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i += 2 * (h)) {                            \
        const NAME(ints) a = FIRST(v[i], v[i + (h)], h), b = SECOND(v[i], v[i + (h)], h);          \
        v[i] = (NAME(ints))MAX(a, b);                                                              \
    }
    FOR_DISTANCES(HALVE)
#undef HALVE
    memcpy(amax, v, sizeof *v);
}

/* The same of n <= LANES tiles of any width. */
INLINE void NAME(tile_amax)(const float *x, int64_t n, int64_t width, int64_t rows, int64_t stride,
                            int32_t *amax) {
    if (n == LANES && width % LANES == 0) {
        NAME(group_amax)(x, width, rows, stride, amax);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        amax[i] = 0;
        for (int64_t row = 0; row < rows; row++) {
            const int32_t own = NAME(amax_of)(x + row * stride + i * width, width);
            amax[i] = own > amax[i] ? own : amax[i];
        }
    }
}

/* Scales of n blocks and their reciprocals. */
TARGET static void NAME(scales)(const lowbit_format *f, const int32_t *restrict amax, int64_t n,
                                float tensor_scale, float *restrict scale,
                                float *restrict inverse) {
#define SCALES(RULE)                                                                               \
    case RULE:                                                                                     \
        for (int64_t i = 0; i < n; i++) {                                                          \
            scale[i] = block_scale(f, amax[i], tensor_scale, RULE);                                \
            inverse[i] = 1.0f / scale[i];                                                          \
        }                                                                                          \
        break;
    switch (f->scale) {
        SCALES(FP32)
        SCALES(E8M0)
        SCALES(E8M0_CEIL)
        SCALES(E8M0_NEAREST)
        SCALES(E8M0_4_3)
        SCALES(TWO_LEVEL)
        SCALES(FOUR_OVER_SIX)
    }
#undef SCALES
}

/* Sum of n <= MOST_VALUES squares: neighbours are added until one is left, zeros standing in up to
 * a power of two. */
INLINE float NAME(sum_of_squares)(const float *restrict x, int64_t n) {
    float square[MOST_VALUES]; /* then, from its beginning, the sums */
    int64_t sums = 1;
    while (sums * LANES < n)
        sums *= 2;
    for (int64_t i = 0; i < n; i++)
        square[i] = x[i] * x[i];
    for (int64_t i = n; i < sums * LANES; i++)
        square[i] = 0.0f;
    for (int64_t k = 0; k < sums; k++) {
        NAME(vector) v;
        memcpy(&v, square + k * LANES, sizeof v);
#define STEP(h) v += ACROSS(v, h);
        FOR_DISTANCES(STEP)
#undef STEP
        square[k] = v[0];
    }
    for (; sums > 1; sums /= 2)
        for (int64_t k = 0; k < sums / 2; k++)
            square[k] = square[2 * k] + square[2 * k + 1];
    return square[0];
}

/* The same by a block's root mean square: QUEST, QUEST_FLOOR.  Its values are taken in units of a
 * power of two near amax, so that no square leaves float32. */
TARGET static void NAME(quest_scales)(const lowbit_format *f, const float *x, const int32_t *amax,
                                      int64_t n, int64_t width, float *scale, float *inverse) {
    const int nearest = f->scale == QUEST;
    for (int64_t i = 0; i < n; i++) {
        int unit = floor_log2(amax[i]) + 1;
        unit = unit < -126 ? -126 : unit > 126 ? 126 : unit;
        float own[MOST_VALUES];
        for (int64_t k = 0; k < width; k++)
            own[k] = x[i * width + k] * power_of_two(-unit);
        const float square = NAME(sum_of_squares)(own, width) / (float)width;
        const int32_t wanted = bits_of(sqrtf(square) * f->clip);
        const float significand = float_of((wanted & (HALF_BIT * 2 - 1)) | ONE_BITS);
        const int exponent = (wanted >> 23) - 127 + (nearest && significand >= SQRT_2);
        scale[i] = amax[i] >= EXPONENT_BITS ? NAN : e8m0(unit + exponent);
        inverse[i] = 1.0f / scale[i];
    }
}

/* Scales of n <= LANES tiles next to each other. */
INLINE void NAME(tile_scales)(const lowbit_format *f, const float *x, int64_t n, int64_t width,
                              int64_t rows, int64_t stride, float tensor_scale, float *scale,
                              float *inverse) {
    int32_t amax[LANES] = {0};
    NAME(tile_amax)(x, n, width, rows, stride, amax);
    if (f->scale == QUEST || f->scale == QUEST_FLOOR)
        NAME(quest_scales)(f, x, amax, n, width, scale, inverse);
    else
        NAME(scales)(f, amax, n, tensor_scale, scale, inverse);
}

/* How to divide by these scales: the fastest way that is exact. */
INLINE int NAME(scaling)(const lowbit_format *f, const float *scale, int64_t n) {
    if (f->scale == UNSCALED)
        return BY_NOTHING;
    if (f->exact_inverse)
        return BY_MULTIPLICATION; /* of a NaN, too */
    if (f->wide)
        return BY_DIVISION;
    int all = HAS_FMA && f->rounding <= NEAREST_EVEN_CODE;
    for (int64_t i = 0; i < n; i++)
        all &= correctable(f, scale[i]);
    return all ? BY_CORRECTION : BY_DIVISION;
}

/* Calls CASE(scaling) with the constant, of those that can occur where there are scales. */
#ifndef FOR_SCALING
#define FOR_SCALING(CASE, scaling, rounding, wide)                                                 \
    if ((scaling) == BY_MULTIPLICATION) {                                                          \
        CASE(BY_MULTIPLICATION);                                                                   \
    } else if (!(wide) && (rounding) <= NEAREST_EVEN_CODE && (scaling) == BY_CORRECTION) {         \
        CASE(BY_CORRECTION);                                                                       \
    } else {                                                                                       \
        CASE(BY_DIVISION);                                                                         \
    }
#endif

/* `count` tiles next to each other, `rows` x `width`, in groups that stay in the first cache. Their
 * scales are found together, and one group ahead: that is a long chain of operations, and the
 * processor fills its gaps with the rounding of the group before. */
INLINE void NAME(tiles_as)(const lowbit_format *f, const float *x, float *out, const float *noise,
                           int64_t first, int64_t count, int64_t width, int64_t rows,
                           int64_t stride, float tensor_scale, const int rounding,
                           const int wide) {
    const int64_t fitting = CACHED / (width * rows);
    const int64_t group = fitting < 1 ? 1 : fitting < LANES ? fitting : LANES;
    float scales[2][LANES], inverses[2][LANES];
#define PREPARE(b)                                                                                 \
    if ((b) < count)                                                                               \
    NAME(tile_scales)(f, x + (b) * width, count - (b) < group ? count - (b) : group, width, rows,  \
                      stride, tensor_scale, scales[(b) / group % 2], inverses[(b) / group % 2])
    PREPARE(0);
    for (int64_t b = 0; b < count; b += group) {
        const int64_t n = count - b < group ? count - b : group;
        const float *scale = scales[b / group % 2], *inverse = inverses[b / group % 2];
        PREPARE(b + group);
        const int scaling = NAME(scaling)(f, scale, n);
#define RUN(SCALING)                                                                               \
    for (int64_t row = 0; row < rows; row++)                                                       \
        for (int64_t i = 0; i < n; i++) {                                                          \
            const int64_t at = row * stride + (b + i) * width;                                     \
            NAME(run)(f, x + at, out + at, noise ? noise + at : noise, first + at, width,          \
                      scale[i], inverse[i], rounding, SCALING, wide);                              \
        }
        FOR_SCALING(RUN, scaling, rounding, wide)
#undef RUN
    }
#undef PREPARE
}

/* Calls CASE(rounding, wide) with constants. */
#define FOR_ROUNDING(f, CASE, WIDE)                                                                \
    switch ((f)->rounding) {                                                                       \
    case NEAREST_EVEN: CASE(NEAREST_EVEN, WIDE); break;                                            \
    case NEAREST_EVEN_CODE: CASE(NEAREST_EVEN_CODE, WIDE); break;                                  \
    case STOCHASTIC: CASE(STOCHASTIC, WIDE); break;                                                \
    case STOCHASTIC_COUNTER: CASE(STOCHASTIC_COUNTER, WIDE); break;                                \
    case DIRECTED: CASE(DIRECTED, WIDE); break;                                                    \
    case UNCLIPPED: CASE(UNCLIPPED, WIDE); break;                                                  \
    }

/* FOUR_OVER_SIX: blocks are rounded with two scales; the second result stays where it errs less. */
INLINE void NAME(choices_as)(const lowbit_format *f, const float *x, float *out,
                             const float *noise, int64_t first, int64_t count, int64_t width,
                             float tensor_scale, const int rounding) {
    lowbit_format other = *f;
    other.max = f->other_max;
    for (int64_t b = 0; b < count; b += LANES) {
        const int64_t n = count - b < LANES ? count - b : LANES;
        int32_t amax[LANES];
        float scale[2 * LANES], inverse[2 * LANES];
        NAME(tile_amax)(x + b * width, n, width, 1, 0, amax);
        NAME(scales)(f, amax, n, tensor_scale, scale, inverse);
        NAME(scales)(&other, amax, n, tensor_scale, scale + n, inverse + n);
        const int scaling = NAME(scaling)(f, scale, 2 * n);
#define RUN(SCALING)                                                                               \
    for (int64_t i = 0; i < n; i++) {                                                              \
        const int64_t at = (b + i) * width;                                                        \
        const float *draws = noise ? noise + at : noise;                                           \
        float tried[2][MOST_VALUES], difference[MOST_VALUES], error[2];                          \
        for (int k = 0; k < 2; k++) {                                                              \
            NAME(run)(f, x + at, tried[k], draws, first + at, width, scale[k * n + i],             \
                      inverse[k * n + i], rounding, SCALING, 0);                                   \
            for (int64_t l = 0; l < width; l++)                                                    \
                difference[l] = tried[k][l] - x[at + l];                                           \
            error[k] = NAME(sum_of_squares)(difference, width);                                    \
        }                                                                                          \
        memcpy(out + at, tried[error[1] < error[0]], (size_t)width * sizeof *out);                 \
    }
        FOR_SCALING(RUN, scaling, rounding, 0)
#undef RUN
    }
}

TARGET static void NAME(choices)(const lowbit_format *f, const float *x, float *out,
                                 const float *noise, int64_t first, int64_t count, int64_t width,
                                 float tensor_scale) {
#define CASE(ROUNDING, WIDE)                                                                       \
    if (width == 16)                                                                               \
        NAME(choices_as)(f, x, out, noise, first, count, 16, tensor_scale, ROUNDING);              \
    else                                                                                           \
        NAME(choices_as)(f, x, out, noise, first, count, width, tensor_scale, ROUNDING)
    FOR_ROUNDING(f, CASE, 0)
#undef CASE
}

/* tiles_as and choices_as, the usual widths as constants. */
TARGET static void NAME(tiles)(const lowbit_format *f, const float *x, float *out,
                               const float *noise, int64_t first, int64_t count, int64_t width,
                               int64_t rows, int64_t stride, float tensor_scale) {
    if (f->scale == FOUR_OVER_SIX) {
        NAME(choices)(f, x, out, noise, first, count, width, tensor_scale);
        return;
    }
#define TILES(W, R, ROUNDING, WIDE)                                                                \
    NAME(tiles_as)(f, x, out, noise, first, count, W, R, stride, tensor_scale, ROUNDING, WIDE)
#define CASE(ROUNDING, WIDE)                                                                       \
    if (width == 32 && rows == 1 && !(WIDE))                                                       \
        TILES(32, 1, ROUNDING, WIDE);                                                              \
    else if (width == 16 && rows == 1 && !(WIDE))                                                  \
        TILES(16, 1, ROUNDING, WIDE);                                                              \
    else                                                                                           \
        TILES(width, rows, ROUNDING, WIDE)
    if (f->wide)
        FOR_ROUNDING(f, CASE, 1)
    else
        FOR_ROUNDING(f, CASE, 0)
#undef CASE
#undef TILES
}

INLINE void NAME(span_as)(const lowbit_format *f, const float *x, float *out, const float *noise,
                          int64_t first, int64_t n, float scale, const int rounding,
                          const int wide) {
    const int scaling = NAME(scaling)(f, &scale, 1);
#define RUN(SCALING)                                                                               \
    NAME(run)(f, x, out, noise, first, n, scale, 1.0f / scale, rounding, SCALING, wide)
    if (scaling == BY_NOTHING)
        RUN(BY_NOTHING);
    else
        FOR_SCALING(RUN, scaling, rounding, wide)
#undef RUN
}

/* n values that share a scale. */
TARGET static void NAME(span)(const lowbit_format *f, const float *x, float *out,
                              const float *noise, int64_t first, int64_t n, float scale) {
#define SPAN(ROUNDING, WIDE) NAME(span_as)(f, x, out, noise, first, n, scale, ROUNDING, WIDE)
    if (f->wide)
        FOR_ROUNDING(f, SPAN, 1)
    else
        FOR_ROUNDING(f, SPAN, 0)
#undef SPAN
}

/* A copy past the caches, for what is too large to be found there again.  It needs a FENCE. */
TARGET static void NAME(stream)(const float *from, float *to, int64_t n) {
    const int64_t lead = -((intptr_t)to / 4) & (LANES - 1); /* up to where a register is aligned */
    int64_t i = 0;
    for (; i < n && i < lead; i++)
        to[i] = from[i];
    for (; i + LANES <= n; i += LANES) {
        NAME(vector) v;
        memcpy(&v, from + i, sizeof v);
        STREAM(to + i, v);
    }
    for (; i < n; i++)
        to[i] = from[i];
}

#include "rotate.h"
#include "columns.h"

#undef FOR_ROUNDING
#undef INLINE
#undef TARGET
#undef NAME
#undef LANES
#undef HAS_FMA
#undef MULTIPLY_ADD
#undef FMA
#undef MAX
#undef EVEN
#undef ODD
#undef STREAM
#undef EACH_LANE
#undef FOR_DISTANCES
#undef FOR_LONG_DISTANCES
#undef SHUFFLE
