/* The loops, once per instruction set: each of avx512.c, avx2.c and plain.c says what it is made of
 * and includes this file.
 *
 * Parameters called `const` are constants after inlining, so that every combination becomes a loop
 * without branches.  Those combinations are nearly all of the time to compile; an instruction set
 * that defines INSTANCE as a function of its own gets one loop, which branches, for all of them.
 *
 * An instruction set defines TARGET, the function attribute that selects it; NAME(f), f with its
 * suffix; LANES, the floats in a register; and for registers
 *   FMA(a, b, c)             a * b + c, rounded once if HAS_FMA
 *   MAX(a, b), MIN_WORDS     of integers, signed and not
 *   COPY_SIGN(a, b)          a with the sign of b
 *   CLAMP(a, lowest, limit)  a NaN stays; CUT is the same with -limit, of no NaN
 *   TRUNCATE(a)              toward zero, |a| < 2^31
 *   ADD_WHERE_LESS(a, b, to, more)  to + more where a < b, else to
 *   EVERY(mask)              whether all lanes are set
 *   STREAM(to, a)            past the caches, `to` being aligned
 */

/* Of registers, for h = 1, 2, 4, ...: FIRST(a, b, h) has, where bit h of a lane's number is set,
 * the lane of b that is h lower, else a's own; SECOND b's own, else the lane of a that is h higher;
 * ACROSS(a, h) swaps lanes h apart. */
#define FIRST_LANE(i, h) ((i) & (h) ? LANES + (i) - (h) : (i))
#define SECOND_LANE(i, h) ((i) & (h) ? LANES + (i) : (i) + (h))
#define LANE_ACROSS(i, h) ((i) ^ (h))
#define NUMBER(i, h) (i)
#define SAME(i, c) (c)
#define PLUS_OR_MINUS(i, h) ((i) & (h) ? -1.0f : 1.0f)
#define FIRST(a, b, h) SHUFFLE(a, b, FIRST_LANE, h)
#define SECOND(a, b, h) SHUFFLE(a, b, SECOND_LANE, h)
#define ACROSS(a, h) SHUFFLE(a, a, LANE_ACROSS, h)
#define ADD_MASKED(a, b, to, more)                                                                 \
    ((to) + (NAME(vector))((NAME(ints))((a) < (b)) & (NAME(ints))(more)))

#define INLINE TARGET static inline __attribute__((always_inline))
#define ONCE TARGET static __attribute__((noinline)) /* a call is for many values */
#ifndef INSTANCE
#define INSTANCE INLINE
#endif

#include "round.h"

/* n values that share a scale; out may be x.  Those at `next`, which may be x, are fetched
 * meanwhile.  Here as below, `first` is the place of the first value in the tensor, as its draw has
 * it; `streamed` is what span says. */
INLINE void NAME(run)(const lowbit_format *f, const float *x, const float *next, float *out,
                      const float *noise, int64_t first, int64_t n, float scale, float inverse,
                      const int rounding, const int scaling, const int wide, int streamed) {
    NAME(words) weyl = NAME(weyl)(f->key_low, first, 1);
#define REGISTER(SOME)                                                                             \
    do {                                                                                           \
        NAME(vector) draw = {0};                                                                   \
        if (rounding == STOCHASTIC)                                                                \
            draw = NAME(load)(noise + i, SOME);                                                    \
        else if (rounding == STOCHASTIC_COUNTER)                                                   \
            draw = NAME(uniform)(weyl, f->key_high);                                               \
        const NAME(vector) result = NAME(value)(f, NAME(load)(x + i, SOME), ALL(scale),            \
                                                ALL(inverse), draw, rounding, scaling, wide);      \
        if (streamed && (SOME) == LANES)                                                           \
            STREAM(out + i, result);                                                               \
        else                                                                                       \
            NAME(store)(out + i, result, SOME);                                                    \
    } while (0)
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES, weyl += LANES * WEYL) {
        __builtin_prefetch(next + i);
        REGISTER(LANES);
    }
    if (i < n)
        REGISTER((n - i) & (LANES - 1));
#undef REGISTER
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
    const int64_t quarter = n / 4 / LANES * LANES;
    NAME(ints) most[4] = {{0}};
    for (int64_t i = 0; i < quarter; i += LANES)
        _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++) {
            const NAME(vector) own = NAME(load)(x + k * quarter + i, LANES);
            most[k] = (NAME(ints))MAX(most[k], (NAME(ints))own & ~SIGN_BIT);
        }
    float each[4 * LANES];
    memcpy(each, most, sizeof each);
    const int32_t ours = NAME(amax_of)(each, 4 * LANES);
    const int32_t rest = NAME(amax_of)(x + 4 * quarter, n - 4 * quarter);
    return ours > rest ? ours : rest;
}

/* amax of LANES tiles next to each other, `rows` x `width`, width a multiple of LANES: two
 * registers become one, its lanes in turn from either, until each lane is a tile. */
INLINE void NAME(group_amax)(const float *x, int64_t width, int64_t rows, int64_t stride,
                             int32_t *amax) {
    NAME(ints) v[LANES];
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) {
        const float *tile = x + i * width;
        NAME(ints) own = (NAME(ints))NAME(load)(tile, LANES) & ~SIGN_BIT;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t j = row ? 0 : LANES; j < width; j += LANES) {
                const NAME(vector) more = NAME(load)(tile + row * stride + j, LANES);
                own = (NAME(ints))MAX(own, (NAME(ints))more & ~SIGN_BIT);
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

/* The same of n <= LANES tiles of any width; the usual ones as constants. */
ONCE void NAME(tile_amax)(const float *x, int64_t n, int64_t width, int64_t rows, int64_t stride,
                          int32_t *amax) {
    if (n == LANES && width % LANES == 0) {
        if (width == 32 && rows == 1)
            NAME(group_amax)(x, 32, 1, stride, amax);
        else if (width == 16 && rows == 1)
            NAME(group_amax)(x, 16, 1, stride, amax);
        else
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

/* Scales of n blocks. */
INLINE void NAME(scales_of)(const lowbit_format *f, const int32_t *restrict amax, int64_t n,
                            float tensor_scale, float *restrict scale) {
#define SCALES(RULE)                                                                               \
    case RULE:                                                                                     \
        for (int64_t i = 0; i < n; i++)                                                            \
            scale[i] = block_scale(f, amax[i], tensor_scale, RULE);                                \
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

TARGET static void NAME(scales)(const lowbit_format *f, const int32_t *restrict amax, int64_t n,
                                float tensor_scale, float *restrict scale) {
    if (n == GROUP * LANES) { /* most calls by far */
        NAME(scales_of)(f, amax, GROUP * LANES, tensor_scale, scale);
        return;
    }
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        NAME(scales_of)(f, amax + i, LANES, tensor_scale, scale + i);
    NAME(scales_of)(f, amax + i, n - i, tensor_scale, scale + i);
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
        NAME(vector) v = NAME(load)(square + k * LANES, LANES);
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
                                      int64_t n, int64_t width, float *scale) {
    const int nearest = f->scale == QUEST;
    for (int64_t i = 0; i < n; i++) {
        const int unit = unit_exponent(amax[i]);
        float own[MOST_VALUES];
        for (int64_t k = 0; k < width; k++)
            own[k] = x[i * width + k] * power_of_two(-unit);
        const float square = NAME(sum_of_squares)(own, width) / (float)width;
        const int32_t wanted = bits_of(sqrtf(square) * f->clip);
        const float significand = float_of((wanted & (HALF_BIT * 2 - 1)) | ONE_BITS);
        const int exponent = (wanted >> 23) - 127 + (nearest && significand > SQRT_2);
        const float own_scale = e8m0(unit + exponent);
        scale[i] = amax[i] >= EXPONENT_BITS ? NAN : own_scale < f->most ? own_scale : f->most;
    }
}

/* Scales of n <= GROUP * LANES tiles next to each other. */
ONCE void NAME(tile_scales)(const lowbit_format *f, const float *x, int64_t n, int64_t width,
                            int64_t rows, int64_t stride, float tensor_scale, float *scale) {
    _Alignas(64) int32_t amax[GROUP * LANES];
    for (int64_t i = 0; i < n; i += LANES)
        NAME(tile_amax)(x + i * width, n - i < LANES ? n - i : LANES, width, rows, stride,
                        amax + i);
    if (f->scale == QUEST || f->scale == QUEST_FLOOR)
        NAME(quest_scales)(f, x, amax, n, width, scale);
    else
        NAME(scales)(f, amax, n, tensor_scale, scale);
}

/* How to divide by these scales: the fastest way that is exact.  Fills in what it takes: their
 * inverses, or for BY_MOVING something else in the place of both. */
ONCE int NAME(scaling)(const lowbit_format *f, float *scale, float *inverse, int64_t n) {
    if (f->scale == UNSCALED)
        return BY_NOTHING;
    const int nearest = f->rounding <= NEAREST_EVEN_CODE;
    const int moving = f->exact_inverse && f->lowest == -f->limit && f->rounding < DIRECTED;
    int all = !f->wide && (moving || (HAS_FMA && nearest && !f->exact_inverse));
    if (all) {
        /* Of a scale above 1 a subnormal quotient would have been rounded before its draw. */
        const float least = least_scale(f), most = nearest ? largest_scale(f) : 1.0f;
        for (int64_t i = 0; i < n; i += LANES) {
            const int64_t some = n - i < LANES ? n - i : LANES;
            const NAME(vector) own = NAME(load)(scale + i, some);
            const NAME(ints) lanes = {EACH_LANE(NUMBER, 0)};
            all &= EVERY(((own >= least) & (own <= most)) | (lanes >= (int32_t)some));
        }
    }
    for (int64_t i = 0; i < n; i += LANES) {
        const int64_t some = n - i < LANES ? n - i : LANES;
        const NAME(vector) own = NAME(load)(scale + i, some);
        if (all && moving) {
            const NAME(ints) power = (NAME(ints))own + (f->emin_bits - ONE_BITS);
            NAME(store)(inverse + i, (NAME(vector))power, some);
            NAME(store)(scale + i, own * f->limit, some);
        } else {
            NAME(store)(inverse + i, 1.0f / own, some);
        }
    }
    if (!all)
        return f->exact_inverse ? BY_MULTIPLICATION : BY_DIVISION;
    return moving ? BY_MOVING : f->scale == FP32 ? BY_CORRECTION_WITHIN : BY_CORRECTION;
}

/* Calls CASE(scaling) with the constant, of those that can occur where there are scales. */
#ifndef FOR_SCALING
#define FOR_SCALING(CASE, scaling, rounding, wide)                                                 \
    if ((scaling) == BY_MULTIPLICATION) {                                                          \
        CASE(BY_MULTIPLICATION);                                                                   \
    } else if (!(wide) && (rounding) < DIRECTED && (scaling) == BY_MOVING) {                       \
        CASE(BY_MOVING);                                                                           \
    } else if (!(wide) && (rounding) <= NEAREST_EVEN_CODE && (scaling) == BY_CORRECTION) {         \
        CASE(BY_CORRECTION);                                                                       \
    } else if (!(wide) && (rounding) <= NEAREST_EVEN_CODE && (scaling) == BY_CORRECTION_WITHIN) {  \
        CASE(BY_CORRECTION_WITHIN);                                                                \
    } else {                                                                                       \
        CASE(BY_DIVISION);                                                                         \
    }
#endif

/* `count` tiles next to each other, `rows` x `width`, in groups that stay in the first cache.  To
 * find a scale is a long chain of operations: the processor works on those of a group at once.
 * `source`, unless NULL, is where x lies in memory, or came from: its next group is fetched while
 * this one is rounded. */
INSTANCE void NAME(tiles_as)(const lowbit_format *f, const float *x, const float *source,
                             float *out, const float *noise, int64_t first, int64_t count,
                             int64_t width, int64_t rows, int64_t stride, float tensor_scale,
                             const int rounding, const int wide) {
    const lowbit_format own = *f; /* of which the compiler sees that no store changes it */
    const int64_t fitting = (source ? FETCHED : CACHED) / (width * rows), most = GROUP * LANES;
    const int64_t group = fitting < 1 ? 1 : fitting < most ? fitting : most;
    _Alignas(64) float scale[GROUP * LANES], inverse[GROUP * LANES];
    for (int64_t b = 0; b < count; b += group) {
        const int64_t n = count - b < group ? count - b : group;
        const float *from = x + b * width, *next = source ? source + (b + group) * width : from;
        NAME(tile_scales)(f, from, n, width, rows, stride, tensor_scale, scale);
        const int scaling = NAME(scaling)(f, scale, inverse, n);
#define RUN(SCALING)                                                                               \
    for (int64_t row = 0; row < rows; row++)                                                       \
        for (int64_t i = 0; i < n; i++) {                                                          \
            const int64_t at = row * stride + (b + i) * width;                                     \
            NAME(run)(&own, from + row * stride + i * width, next + i * width, out + at,           \
                      noise ? noise + at : noise, first + at, width, scale[i], inverse[i],         \
                      rounding, SCALING, wide, 0);                                                 \
        }
        FOR_SCALING(RUN, scaling, rounding, wide)
#undef RUN
    }
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

/* FOUR_OVER_SIX: blocks are rounded with two scales; the second result stays where it errs less.
 * Those scales have two levels, so only a division or its correction is exact. */
INSTANCE void NAME(choices_as)(const lowbit_format *f, const float *x, float *out,
                               const float *noise, int64_t first, int64_t count, int64_t width,
                               float tensor_scale, const int rounding) {
    const lowbit_format own = *f;
    lowbit_format other = *f;
    other.max = f->other_max;
    other.most = f->other_most;
    for (int64_t b = 0; b < count; b += LANES) {
        const int64_t n = count - b < LANES ? count - b : LANES;
        int32_t amax[LANES];
        float scale[2 * LANES], inverse[2 * LANES];
        NAME(tile_amax)(x + b * width, n, width, 1, 0, amax);
        NAME(scales)(f, amax, n, tensor_scale, scale);
        NAME(scales)(&other, amax, n, tensor_scale, scale + n);
        const int corrected = NAME(scaling)(f, scale, inverse, 2 * n) == BY_CORRECTION;
        for (int64_t i = 0; i < n; i++) {
            const int64_t at = (b + i) * width;
            const float *draws = noise ? noise + at : noise;
            const float unit = power_of_two(-unit_exponent(amax[i]));
            float tried[2][MOST_VALUES], difference[MOST_VALUES], error[2];
#define RUN(SCALING)                                                                               \
    NAME(run)(&own, x + at, x + at, tried[k], draws, first + at, width, scale[k * n + i],          \
              inverse[k * n + i], rounding, SCALING, 0, 0)
            _Pragma("GCC unroll 1") for (int k = 0; k < 2; k++) {
                if (rounding == NEAREST_EVEN && corrected)
                    RUN(BY_CORRECTION);
                else
                    RUN(BY_DIVISION);
                for (int64_t l = 0; l < width; l++)
                    difference[l] = (tried[k][l] - x[at + l]) * unit;
                error[k] = NAME(sum_of_squares)(difference, width);
            }
#undef RUN
            memcpy(out + at, tried[error[1] < error[0]], (size_t)width * sizeof *out);
        }
    }
}

/* The same, functions of their own as below; FOUR_OVER_SIX is of E2M1 alone, which has a mantissa. */
#define CHOICES(CASE, WIDTH, ROUNDING)                                                             \
    TARGET static __attribute__((noinline)) void NAME(choices_##CASE)(                             \
        const lowbit_format *f, const float *x, float *out, const float *noise, int64_t first,     \
        int64_t count, int64_t width, float tensor_scale) {                                        \
        (void)width;                                                                               \
        NAME(choices_as)(f, x, out, noise, first, count, WIDTH, tensor_scale, ROUNDING);           \
    }
CHOICES(NEAREST_EVEN_16, 16, NEAREST_EVEN)
CHOICES(STOCHASTIC_16, 16, STOCHASTIC)
CHOICES(STOCHASTIC_COUNTER_16, 16, STOCHASTIC_COUNTER)
CHOICES(NEAREST_EVEN_any, width, NEAREST_EVEN)
CHOICES(STOCHASTIC_any, width, STOCHASTIC)
CHOICES(STOCHASTIC_COUNTER_any, width, STOCHASTIC_COUNTER)
CHOICES(DIRECTED_any, width, DIRECTED)
CHOICES(UNCLIPPED_any, width, UNCLIPPED)
#undef CHOICES

TARGET static void NAME(choices)(const lowbit_format *f, const float *x, float *out,
                                 const float *noise, int64_t first, int64_t count, int64_t width,
                                 float tensor_scale) {
#define CHOICES(CASE) NAME(choices_##CASE)(f, x, out, noise, first, count, width, tensor_scale)
#define ANY_WIDTH(ROUNDING)                                                                        \
    case ROUNDING: CHOICES(ROUNDING##_any); break;
#define OR_16(ROUNDING)                                                                            \
    case ROUNDING:                                                                                 \
        if (width == 16)                                                                           \
            CHOICES(ROUNDING##_16);                                                                \
        else                                                                                       \
            CHOICES(ROUNDING##_any);                                                               \
        break;
    switch (f->rounding) {
        OR_16(NEAREST_EVEN)
        OR_16(STOCHASTIC)
        OR_16(STOCHASTIC_COUNTER)
        ANY_WIDTH(DIRECTED)
        ANY_WIDTH(UNCLIPPED)
    }
#undef OR_16
#undef ANY_WIDTH
#undef CHOICES
}

/* tiles_as, the usual widths as constants.  Functions of their own: in one that has all cases the
 * compiler runs out of registers. */
#define TILES(CASE, WIDTH, ROWS, ROUNDING, WIDE)                                                   \
    TARGET static __attribute__((noinline)) void NAME(tiles_##CASE)(                               \
        const lowbit_format *f, const float *x, const float *source, float *out,                   \
        const float *noise, int64_t first, int64_t count, int64_t width, int64_t rows,             \
        int64_t stride, float tensor_scale) {                                                      \
        (void)width, (void)rows;                                                                   \
        NAME(tiles_as)(f, x, source, out, noise, first, count, WIDTH, ROWS, stride, tensor_scale,  \
                       ROUNDING, WIDE);                                                            \
    }
#define FOR_SIZES(ROUNDING)                                                                        \
    TILES(ROUNDING##_16, 16, 1, ROUNDING, 0)                                                       \
    TILES(ROUNDING##_32, 32, 1, ROUNDING, 0)                                                       \
    TILES(ROUNDING##_any, width, rows, ROUNDING, 0)                                                \
    TILES(ROUNDING##_wide, width, rows, ROUNDING, 1)
FOR_SIZES(NEAREST_EVEN)
FOR_SIZES(NEAREST_EVEN_CODE)
FOR_SIZES(STOCHASTIC)
FOR_SIZES(STOCHASTIC_COUNTER)
FOR_SIZES(DIRECTED)
FOR_SIZES(UNCLIPPED)
#undef FOR_SIZES
#undef TILES

TARGET static void NAME(tiles)(const lowbit_format *f, const float *x, const float *source,
                               float *out, const float *noise, int64_t first, int64_t count,
                               int64_t width, int64_t rows, int64_t stride, float tensor_scale) {
    if (f->scale == FOUR_OVER_SIX) {
        NAME(choices)(f, x, out, noise, first, count, width, tensor_scale);
        return;
    }
#define TILES(CASE)                                                                                \
    NAME(tiles_##CASE)(f, x, source, out, noise, first, count, width, rows, stride, tensor_scale)
#define CASE(ROUNDING, WIDE)                                                                       \
    if (f->wide)                                                                                   \
        TILES(ROUNDING##_wide);                                                                    \
    else if (width == 32 && rows == 1)                                                             \
        TILES(ROUNDING##_32);                                                                      \
    else if (width == 16 && rows == 1)                                                             \
        TILES(ROUNDING##_16);                                                                      \
    else                                                                                           \
        TILES(ROUNDING##_any)
    FOR_ROUNDING(f, CASE, 0)
#undef CASE
#undef TILES
}

INSTANCE void NAME(span_as)(const lowbit_format *f, const float *x, const float *next, float *out,
                            const float *noise, int64_t first, int64_t n, float scale, int streamed,
                            const int rounding, const int wide) {
    const lowbit_format own = *f; /* of which the compiler sees that no store changes it */
    float inverse;
    const int scaling = NAME(scaling)(f, &scale, &inverse, 1);
#define RUN(SCALING)                                                                               \
    NAME(run)(&own, x, next, out, noise, first, n, scale, inverse, rounding, SCALING, wide,        \
              streamed)
    if (scaling == BY_NOTHING)
        RUN(BY_NOTHING);
    else
        FOR_SCALING(RUN, scaling, rounding, wide)
#undef RUN
}

/* n values that share a scale.  Those at `next` are fetched meanwhile; if `streamed` out, then
 * aligned to a register, is written past the caches, which needs a FENCE. */
TARGET static void NAME(span)(const lowbit_format *f, const float *x, const float *next, float *out,
                              const float *noise, int64_t first, int64_t n, float scale,
                              int streamed) {
#define SPAN(ROUNDING, WIDE)                                                                       \
    NAME(span_as)(f, x, next, out, noise, first, n, scale, streamed, ROUNDING, WIDE)
    if (f->wide)
        FOR_ROUNDING(f, SPAN, 1)
    else
        FOR_ROUNDING(f, SPAN, 0)
#undef SPAN
}

/* A copy past the caches.  It needs a FENCE. */
TARGET static void NAME(stream)(const float *from, float *to, int64_t n) {
    const int64_t lead = -((intptr_t)to / 4) & (LANES - 1); /* up to where a register is aligned */
    int64_t i = 0;
    for (; i < n && i < lead; i++)
        to[i] = from[i];
    for (; i + LANES <= n; i += LANES) {
        const NAME(vector) v = NAME(load)(from + i, LANES);
        STREAM(to + i, v);
    }
    for (; i < n; i++)
        to[i] = from[i];
}

/* n random signs: -1 where the draw is below 1/2. */
TARGET static void NAME(signs)(float *out, uint64_t key, int64_t n) {
    NAME(words) weyl = NAME(weyl)((uint32_t)key, 0, 1);
    for (int64_t i = 0; i < n; i += LANES, weyl += LANES * WEYL) {
        const NAME(ints) below = NAME(uniform)(weyl, (uint32_t)(key >> 32)) < 0.5f;
        NAME(store)(out + i, (NAME(vector))(ONE_BITS | (below & SIGN_BIT)),
                    n - i < LANES ? n - i : LANES);
    }
}

#include "rotate.h"
#include "columns.h"

#define KERNELS(S)                                                                                 \
    {#S, amax_##S, scales_##S, tiles_##S, span_##S, stream_##S, column_amax_##S, strip_##S,       \
     rotate_##S, rotate_columns_##S, signs_##S}
