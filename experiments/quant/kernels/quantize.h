/* The loops, once per instruction set: quantize.c includes this file several times.
 *
 * The including file sets NAME(f), which adds the instruction set's suffix, TARGET, the function
 * attribute that selects it, LANES, the floats in a register, HAS_FMA, and for registers
 * FMA(a, b, c), MAX(a, b) and STREAM(to, a).  Most loops are plain C that the compiler vectorises; parameters called `const` are constants after inlining,
 * so that every combination becomes a loop without branches.
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
#define FOR_DISTANCES(F) F(1) F(2) F(4) F(8)
#elif LANES == 8
#define EACH_LANE(F, h) F(0, h), F(1, h), F(2, h), F(3, h), F(4, h), F(5, h), F(6, h), F(7, h)
#define FOR_DISTANCES(F) F(1) F(2) F(4)
#else
#define EACH_LANE(F, h) F(0, h), F(1, h), F(2, h), F(3, h)
#define FOR_DISTANCES(F) F(1) F(2)
#endif
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
    return (lower + (float)rounds_up(f, steps - lower, inexact, sign, draw, rounding)) * ulp;
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

/* n values that share a scale.  Here as below, `first` is the place of the first one in the
 * tensor, as its draw has it. */
INLINE void NAME(run)(const lowbit_format *f, const float *restrict x, float *restrict out,
                      const float *restrict noise, int64_t first, int64_t n, float scale,
                      float inverse, const int rounding, const int scaling, const int wide) {
    const uint32_t weyl = (uint32_t)first * WEYL + f->key_low;
    for (int i = 0; i < n; i++) {
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

/* The same of each of `width` columns, down `length` rows; adds to what amax holds. */
TARGET static void NAME(column_amax)(const float *restrict x, int64_t length, int64_t stride,
                                     int64_t width, int32_t *restrict amax) {
    for (int64_t i = 0; i < length; i++)
        for (int64_t j = 0; j < width; j++) {
            const int32_t magnitude = bits_of(x[i * stride + j]) & ~SIGN_BIT;
            amax[j] = magnitude > amax[j] ? magnitude : amax[j];
        }
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

/* amax of LANES tiles next to each other, `rows` x `width`, width a multiple of LANES: two registers
 * become one, its lanes in turn from either, until each lane is a tile. */
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

/* Scales of n blocks and their reciprocals. *//* Scales of n blocks and their reciprocals. */
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

/* `count` tiles next to each other, `rows` x `width`, in groups whose scales are found together and
 * that stay in the first cache. */
INLINE void NAME(tiles_as)(const lowbit_format *f, const float *x, float *out, const float *noise,
                           int64_t first, int64_t count, int64_t width, int64_t rows,
                           int64_t stride, float tensor_scale, const int rounding,
                           const int wide) {
    const int64_t fitting = CACHED / (width * rows);
    const int64_t group = fitting < 1 ? 1 : fitting < LANES ? fitting : LANES;
    for (int64_t b = 0; b < count; b += group) {
        const int64_t n = count - b < group ? count - b : group;
        int32_t amax[LANES];
        float scale[LANES], inverse[LANES];
        NAME(tile_amax)(x + b * width, n, width, rows, stride, amax);
        NAME(scales)(f, amax, n, tensor_scale, scale, inverse);
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
}

/* Calls CASE(rounding, wide) with constants. */
#define FOR_ROUNDING(f, CASE, WIDE)                                                                \
    switch ((f)->rounding) {                                                                       \
    case NEAREST_EVEN: CASE(NEAREST_EVEN, WIDE); break;                                            \
    case NEAREST_EVEN_CODE: CASE(NEAREST_EVEN_CODE, WIDE); break;                                  \
    case STOCHASTIC: CASE(STOCHASTIC, WIDE); break;                                                \
    case STOCHASTIC_COUNTER: CASE(STOCHASTIC_COUNTER, WIDE); break;                                \
    case DIRECTED: CASE(DIRECTED, WIDE); break;                                                    \
    }

/* Sum of (a - b)^2 of n <= MOST_CHOICES values: neighbours are added until one is left, zeros
 * standing in up to a power of two. */
INLINE float NAME(squared_error)(const float *restrict a, const float *restrict b, int64_t n) {
    float square[MOST_CHOICES], sum[MOST_CHOICES / LANES];
    int64_t sums = 1;
    while (sums * LANES < n)
        sums *= 2;
    for (int64_t i = 0; i < n; i++)
        square[i] = (a[i] - b[i]) * (a[i] - b[i]);
    for (int64_t i = n; i < sums * LANES; i++)
        square[i] = 0.0f;
    for (int64_t k = 0; k < sums; k++) {
        NAME(vector) v;
        memcpy(&v, square + k * LANES, sizeof v);
#define STEP(h) v += ACROSS(v, h);
        FOR_DISTANCES(STEP)
#undef STEP
        sum[k] = v[0];
    }
    for (; sums > 1; sums /= 2)
        for (int64_t k = 0; k < sums / 2; k++)
            sum[k] = sum[2 * k] + sum[2 * k + 1];
    return sum[0];
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
        float tried[2][MOST_CHOICES], error[2];                                                    \
        for (int k = 0; k < 2; k++) {                                                              \
            NAME(run)(f, x + at, tried[k], draws, first + at, width, scale[k * n + i],             \
                      inverse[k * n + i], rounding, SCALING, 0);                                   \
            error[k] = NAME(squared_error)(tried[k], x + at, width);                               \
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

/* LANES x LANES: single values, then pairs, then fours, ... change places. */
INLINE void NAME(transpose)(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    NAME(vector) v[LANES];
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++)
        memcpy(v + i, from + i * from_stride, sizeof *v);
#define SWAP(h)                                                                                    \
    _Pragma("GCC unroll 16") for (int k = 0; k < LANES / 2; k++) {                                 \
        const int i = k / (h) * 2 * (h) + k % (h);                                                 \
        const NAME(vector) a = v[i], b = v[i + (h)];                                               \
        v[i] = FIRST(a, b, h);                                                                     \
        v[i + (h)] = SECOND(a, b, h);                                                              \
    }
    FOR_DISTANCES(SWAP)
#undef SWAP
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++)
        memcpy(to + i * to_stride, v + i, sizeof *v);
}

enum { NAME(WIDE_TILE) = 32, NAME(LONG_TILE) = 32 };

/* `length` <= LONG_TILE rows from `row`, `width` <= WIDE_TILE columns from `column` of x, each
 * column with its own scale, into the transposed out, by way of a tile that stays in cache. */
INLINE void NAME(tile_as)(const lowbit_format *f, const float *restrict x, float *restrict out,
                          const float *restrict noise, int64_t rows, int64_t columns, int64_t row,
                          int64_t column, int length, int width, const float *restrict scale,
                          const float *restrict inverse, const int rounding, const int scaling,
                          const int wide) {
    float tile[NAME(LONG_TILE)][NAME(WIDE_TILE)];
    const uint32_t stride = (uint32_t)rows * WEYL;
    for (int i = 0; i < length; i++) {
        const int64_t first = column * rows + row + i; /* index of the first one in out */
        const uint32_t weyl = (uint32_t)first * WEYL + f->key_low;
        const float *from = x + (row + i) * columns + column;
        for (int j = 0; j < width; j++) {
            const float draw = rounding == STOCHASTIC ? noise[first + j * rows]
                               : rounding == STOCHASTIC_COUNTER
                                   ? uniform(weyl + (uint32_t)j * stride, f->key_high)
                                   : 0.0f;
            tile[i][j] = NAME(value)(f, from[j], scale[j], inverse[j], draw, rounding, scaling, wide);
        }
    }
    float *to = out + column * rows + row;
    const int square = length % LANES == 0 && width % LANES == 0;
    for (int j = 0; j < (square ? width : 0); j += LANES)
        for (int i = 0; i < length; i += LANES)
            NAME(transpose)(&tile[i][j], NAME(WIDE_TILE), to + j * rows + i, rows);
    for (int j = 0; j < (square ? 0 : width); j++)
        for (int i = 0; i < length; i++)
            to[j * rows + i] = tile[i][j];
}

/* `block` rows of a few columns: scales unless given, then tile by tile. */
INLINE void NAME(strip_as)(const lowbit_format *f, const float *x, float *out, const float *noise,
                           int64_t rows, int64_t columns, int64_t row, int64_t column,
                           int64_t block, const int width, const float *scale,
                           const float *inverse, const int scaling, const int rounding,
                           const int wide) {
    for (int64_t i = 0; i < block; i += NAME(LONG_TILE)) {
        const int length = block - i < NAME(LONG_TILE) ? (int)(block - i) : NAME(LONG_TILE);
#define TILE(SCALING)                                                                              \
    NAME(tile_as)(f, x, out, noise, rows, columns, row + i, column, length, width, scale, inverse, \
                  rounding, SCALING, wide)
        FOR_SCALING(TILE, scaling, rounding, wide)
#undef TILE
    }
}

/* A rectangle of x [rows, columns] into out [columns, rows]; every `block` consecutive rows of a
 * column share a scale, or all of them those given per column if not NULL. */
TARGET static void NAME(rectangle)(const lowbit_format *f, const float *x, float *out,
                                   const float *noise, int64_t rows, int64_t columns,
                                   const int64_t at[4], int64_t block, float tensor_scale,
                                   const float *given, const float *given_inverse) {
    const int64_t row_begin = at[0], row_end = at[1], column_begin = at[2], column_end = at[3];
    for (int64_t row = row_begin; row < row_end; row += block)
        for (int64_t column = column_begin; column < column_end; column += NAME(WIDE_TILE)) {
            const int64_t rest = column_end - column;
            const int width = rest < NAME(WIDE_TILE) ? (int)rest : NAME(WIDE_TILE);
            int32_t amax[NAME(WIDE_TILE)] = {0};
            float own[NAME(WIDE_TILE)], own_inverse[NAME(WIDE_TILE)];
            const float *scale = given ? given + column : own;
            const float *inverse = given ? given_inverse + column : own_inverse;
            if (!given) {
                NAME(column_amax)(x + row * columns + column, block, columns, width, amax);
                NAME(scales)(f, amax, width, tensor_scale, own, own_inverse);
            }
            const int scaling = NAME(scaling)(f, scale, width);
#define STRIP(ROUNDING, WIDE)                                                                      \
    if (width == NAME(WIDE_TILE) && (ROUNDING) != DIRECTED && !(WIDE))                          \
        NAME(strip_as)(f, x, out, noise, rows, columns, row, column, block, NAME(WIDE_TILE),       \
                       scale, inverse, scaling, ROUNDING, WIDE);                                   \
    else                                                                                           \
        NAME(strip_as)(f, x, out, noise, rows, columns, row, column, block, width, scale, inverse, \
                       scaling, ROUNDING, WIDE)
            if (f->wide)
                FOR_ROUNDING(f, STRIP, 1)
            else
                FOR_ROUNDING(f, STRIP, 0)
#undef STRIP
        }
}
#undef FOR_ROUNDING

INLINE void NAME(butterfly)(NAME(vector) *v, int h) {
    const NAME(vector) a = v[0], b = v[h];
    v[0] = a + b;
    v[h] = a - b;
}

INLINE void NAME(rotate_as)(const float *restrict x, float *restrict out,
                            const float *restrict signs, float factor, const int size) {
    NAME(vector) v[1024 / LANES];
    const int n = size / LANES, in_registers = __builtin_constant_p(size);
    _Pragma("GCC unroll 16") for (int i = 0; i < n; i++) {
        NAME(vector) a;
        memcpy(&a, x + LANES * i, sizeof a);
        if (signs) {
            NAME(vector) s;
            memcpy(&s, signs + LANES * i, sizeof s);
            a *= s;
        }
        /* Of a, b at distance h within the register: a + b and a - b.  The product is exact. */
#define STEP(h) a = FMA(a, (NAME(vector)){EACH_LANE(PLUS_OR_MINUS, h)}, ACROSS(a, h));
        FOR_DISTANCES(STEP)
#undef STEP
        v[i] = a;
    }
    if (in_registers) {
        _Pragma("GCC unroll 8") for (int h = 1; h < n; h *= 2)
            _Pragma("GCC unroll 16") for (int k = 0; k < n / 2; k++)
                NAME(butterfly)(v + k / h * 2 * h + k % h, h);
    } else {
        for (int h = 1; h < n; h *= 2)
            for (int i = 0; i < n; i += 2 * h)
                for (int j = i; j < i + h; j++)
                    NAME(butterfly)(v + j, h);
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < n; i++) {
        const NAME(vector) a = v[i] * factor;
        memcpy(out + LANES * i, &a, sizeof a);
    }
}

/* n values, blocks of `size`; `first` is the place of the first one in the tensor. */
TARGET static void NAME(rotate)(const lowbit_rotation *r, const float *restrict x,
                                float *restrict out, int64_t first, int64_t n) {
    const float *signs = r->signs;
    int64_t column = first % r->columns;
#define ROTATE(SIZE, SIGNS)                                                                        \
    for (int64_t i = 0; i < n; i += (SIZE)) {                                                      \
        NAME(rotate_as)(x + i, out + i, SIGNS, r->factor, SIZE);                                   \
        column = column + (SIZE) == r->columns ? 0 : column + (SIZE);                              \
    }
#define CASE(SIZE)                                                                                 \
    if (signs)                                                                                     \
        ROTATE(SIZE, signs + column)                                                               \
    else                                                                                           \
        ROTATE(SIZE, NULL)
    switch (r->size) {
    case 16: CASE(16) break;
    case 32: CASE(32) break;
    case 64: CASE(64) break;
    case 128: CASE(128) break;
    default: CASE(r->size)
    }
#undef CASE
#undef ROTATE
}

#undef INLINE
#undef TARGET
#undef NAME
#undef LANES
#undef HAS_FMA
#undef MULTIPLY_ADD
#undef FMA
#undef MAX
#undef STREAM
#undef EACH_LANE
#undef FOR_DISTANCES
#undef SHUFFLE
