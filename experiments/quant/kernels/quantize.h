/* The loops, once per instruction set: quantize.c includes this file several times.
 *
 * The including file sets NAME(f), which adds the instruction set's suffix, TARGET, the function
 * attribute that selects it, and HAS_FMA.  Loops are plain C that the compiler vectorises;
 * parameters called `const` are constants after inlining, so that every combination becomes a
 * loop without branches.
 */

#define INLINE TARGET static inline __attribute__((always_inline))

/* One magnitude already divided by its scale, to the grid: exponent below 8 bits, scaled < 2^66.
 *
 * Nearest: adding 2^23 ulps makes the adder round to a multiple of the ulp, ties to even.  Without
 * mantissa bits the even *code* decides: 2^k has code k - emin + 1, and where that is even one ulp
 * more is added, so that ties go the other way.
 */
INLINE float NAME(round)(const lowbit_format *f, float scaled, int32_t sign, float draw,
                         const int rounding) {
    int32_t power = bits_of(scaled) & EXPONENT_BITS;
    power = power > f->emin_bits ? power : f->emin_bits;
    if (rounding == NEAREST_EVEN || rounding == NEAREST_EVEN_CODE) {
        int32_t shift_bits = power + ((23 - f->mantissa) << 23);
        if (rounding == NEAREST_EVEN_CODE)
            shift_bits |= ((power ^ f->emin_bits) >> 23) & 1;
        const float shift = float_of(shift_bits);
        return (scaled + shift) - shift;
    }
    const int32_t ulp_bits = power - (f->mantissa << 23);
    const float ulp = float_of(ulp_bits);
    const float steps = scaled * float_of(2 * ONE_BITS - ulp_bits); /* scaled / ulp < 2^11 */
    const float lower = (float)(int32_t)steps;
    const int inexact = lower * ulp != scaled;
    return (lower + rounds_up(f, steps - lower, inexact, sign, draw, rounding)) * ulp;
}

/* The same by the definition's own words, for 8 exponent bits, where 1 / ulp and 2^23 ulps leave
 * float32.  `scaled` may be infinite, which gives NaN. */
INLINE float NAME(round_wide)(const lowbit_format *f, float scaled, int32_t sign, float draw,
                              const int rounding) {
    int32_t power = bits_of(scaled) & EXPONENT_BITS;
    power = power > f->emin_bits ? power : f->emin_bits;
    const float ulp = float_of(power) * float_of(ONE_BITS - (f->mantissa << 23));
    const float steps = scaled / ulp;
    if (rounding == NEAREST_EVEN || rounding == NEAREST_EVEN_CODE) {
        const int even_code = ((power ^ f->emin_bits) >> 23) & 1;
        if (rounding == NEAREST_EVEN_CODE && even_code && scaled == 1.5f * ulp)
            return ulp;
        return __builtin_rintf(steps) * ulp;
    }
    const float lower = __builtin_floorf(steps);
    const int inexact = lower * ulp != scaled;
    return (lower + rounds_up(f, steps - lower, inexact, sign, draw, rounding)) * ulp;
}

/* scale * round(x / scale), the sign of zero kept. */
INLINE float NAME(value)(const lowbit_format *f, float x, float scale, float inverse, float draw,
                         const int rounding, const int scaling, const int wide) {
    const int32_t sign = bits_of(x) & SIGN_BIT;
    const float magnitude = float_of(bits_of(x) & ~SIGN_BIT);
    float scaled;
    if (scaling == BY_DIVISION) {
        scaled = magnitude / scale;
    } else {
        scaled = magnitude * inverse;
#if HAS_FMA
        if (scaling == BY_CORRECTION) /* Markstein: the quotient, correctly rounded */
            scaled = __builtin_fmaf(__builtin_fmaf(-scaled, scale, magnitude), inverse, scaled);
#endif
    }
    float rounded = wide ? NAME(round_wide)(f, scaled, sign, draw, rounding)
                         : NAME(round)(f, scaled, sign, draw, rounding);
    rounded = rounded > f->limit ? f->limit : rounded; /* a NaN stays */
    return float_of(bits_of(rounded * scale) | sign);
}

/* n values that share a scale; `index` is the position of the first one in the tensor. */
INLINE void NAME(run)(const lowbit_format *f, const float *restrict x, float *restrict out,
                      const float *restrict noise, uint32_t index, int n, float scale,
                      float inverse, const int rounding, const int scaling, const int wide) {
    const uint32_t weyl = index * WEYL + f->key_low;
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

TARGET static int32_t NAME(amax)(const float *x, int64_t n) { return NAME(amax_of)(x, n); }

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
    }
#undef SCALES
}

/* How to divide by these scales: the fastest way that is exact. */
INLINE int NAME(scaling)(const lowbit_format *f, const float *scale, int64_t n) {
    if (f->wide)
        return BY_DIVISION;
    if (f->power_of_two)
        return BY_MULTIPLICATION; /* of a NaN, too */
    int all = HAS_FMA && f->rounding <= NEAREST_EVEN_CODE;
    for (int64_t i = 0; i < n; i++)
        all &= correctable(f, scale[i]);
    return all ? BY_CORRECTION : BY_DIVISION;
}

/* Calls CASE(scaling) with the constant, of those that can occur. */
#ifndef FOR_SCALING
#define FOR_SCALING(CASE, scaling, rounding, wide)                                                 \
    if (!(wide) && (scaling) == BY_MULTIPLICATION) {                                               \
        CASE(BY_MULTIPLICATION);                                                                   \
    } else if (!(wide) && (rounding) <= NEAREST_EVEN_CODE && (scaling) == BY_CORRECTION) {         \
        CASE(BY_CORRECTION);                                                                       \
    } else {                                                                                       \
        CASE(BY_DIVISION);                                                                         \
    }
#endif

enum { NAME(GROUP) = 16 }; /* blocks whose scales are found together */

INLINE void NAME(blocks_as)(const lowbit_format *f, const float *x, float *out, const float *noise,
                            int64_t begin, int64_t end, int64_t block, float tensor_scale,
                            const int rounding, const int wide) {
    for (int64_t b = begin; b < end; b += NAME(GROUP)) {
        const int64_t n = end - b < NAME(GROUP) ? end - b : NAME(GROUP);
        int32_t amax[NAME(GROUP)];
        float scale[NAME(GROUP)], inverse[NAME(GROUP)];
        for (int64_t i = 0; i < n; i++)
            amax[i] = NAME(amax_of)(x + (b + i) * block, block);
        NAME(scales)(f, amax, n, tensor_scale, scale, inverse);
        const int scaling = NAME(scaling)(f, scale, n);
#define RUN(SCALING)                                                                               \
    for (int64_t i = 0; i < n; i++) {                                                              \
        const int64_t first = (b + i) * block;                                                     \
        NAME(run)(f, x + first, out + first, noise ? noise + first : noise, (uint32_t)first,       \
                  (int)block, scale[i], inverse[i], rounding, SCALING, wide);                      \
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

/* Blocks begin..end of `block` consecutive values each. */
TARGET static void NAME(blocks)(const lowbit_format *f, const float *x, float *out,
                                const float *noise, int64_t begin, int64_t end, int64_t block,
                                float tensor_scale) {
#define BLOCKS(ROUNDING, WIDE)                                                                     \
    if (block == 32 && !(WIDE))                                                                    \
        NAME(blocks_as)(f, x, out, noise, begin, end, 32, tensor_scale, ROUNDING, WIDE);           \
    else if (block == 16 && !(WIDE))                                                               \
        NAME(blocks_as)(f, x, out, noise, begin, end, 16, tensor_scale, ROUNDING, WIDE);           \
    else                                                                                           \
        NAME(blocks_as)(f, x, out, noise, begin, end, block, tensor_scale, ROUNDING, WIDE)
    if (f->wide)
        FOR_ROUNDING(f, BLOCKS, 1)
    else
        FOR_ROUNDING(f, BLOCKS, 0)
#undef BLOCKS
}

INLINE void NAME(span_as)(const lowbit_format *f, const float *x, float *out, const float *noise,
                          int64_t begin, int64_t end, float scale, const int rounding,
                          const int wide) {
    const int scaling = NAME(scaling)(f, &scale, 1);
#define RUN(SCALING)                                                                               \
    NAME(run)(f, x + begin, out + begin, noise ? noise + begin : noise, (uint32_t)begin,           \
              (int)(end - begin), scale, 1.0f / scale, rounding, SCALING, wide)
    FOR_SCALING(RUN, scaling, rounding, wide)
#undef RUN
}

/* Values begin..end, which share a scale. */
TARGET static void NAME(span)(const lowbit_format *f, const float *x, float *out,
                              const float *noise, int64_t begin, int64_t end, float scale) {
#define SPAN(ROUNDING, WIDE) NAME(span_as)(f, x, out, noise, begin, end, scale, ROUNDING, WIDE)
    if (f->wide)
        FOR_ROUNDING(f, SPAN, 1)
    else
        FOR_ROUNDING(f, SPAN, 0)
#undef SPAN
}

/* 8 x 8: single values, then pairs, then fours change places. */
INLINE void NAME(transpose)(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    eight a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7;
#define LOAD(i) memcpy(&a##i, from + i * from_stride, sizeof(eight))
#define STORE(i) memcpy(to + i * to_stride, &b##i, sizeof(eight))
#define SWAP(from, i, j, to, WHAT)                                                                 \
    to##i = SHUFFLE(from##i, from##j, FIRST_##WHAT);                                               \
    to##j = SHUFFLE(from##i, from##j, SECOND_##WHAT)
#define FIRST_ONES 0, 8, 2, 10, 4, 12, 6, 14
#define SECOND_ONES 1, 9, 3, 11, 5, 13, 7, 15
#define FIRST_TWOS 0, 1, 8, 9, 4, 5, 12, 13
#define SECOND_TWOS 2, 3, 10, 11, 6, 7, 14, 15
#define FIRST_FOURS 0, 1, 2, 3, 8, 9, 10, 11
#define SECOND_FOURS 4, 5, 6, 7, 12, 13, 14, 15
    LOAD(0), LOAD(1), LOAD(2), LOAD(3), LOAD(4), LOAD(5), LOAD(6), LOAD(7);
    SWAP(a, 0, 1, b, ONES); SWAP(a, 2, 3, b, ONES); SWAP(a, 4, 5, b, ONES); SWAP(a, 6, 7, b, ONES);
    SWAP(b, 0, 2, a, TWOS); SWAP(b, 1, 3, a, TWOS); SWAP(b, 4, 6, a, TWOS); SWAP(b, 5, 7, a, TWOS);
    SWAP(a, 0, 4, b, FOURS); SWAP(a, 1, 5, b, FOURS); SWAP(a, 2, 6, b, FOURS); SWAP(a, 3, 7, b, FOURS);
    STORE(0), STORE(1), STORE(2), STORE(3), STORE(4), STORE(5), STORE(6), STORE(7);
#undef LOAD
#undef STORE
#undef SWAP
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
    const int square = length % 8 == 0 && width % 8 == 0;
    for (int j = 0; j < (square ? width : 0); j += 8)
        for (int i = 0; i < length; i += 8)
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

/* One step of the butterfly within eight values: a, b to a + b, a - b at distance `h`. */
#ifndef BUTTERFLY
#define BUTTERFLY(v, swapped, ...)                                                                 \
    ((swapped) + (eight)((eight_int)(v) ^ (SIGN_BIT & (eight_int){__VA_ARGS__})))
#endif

INLINE void NAME(butterfly)(eight *v, int h) {
    const eight a = v[0], b = v[h];
    v[0] = a + b;
    v[h] = a - b;
}

INLINE void NAME(rotate_as)(const float *restrict x, float *restrict out,
                            const float *restrict signs, float factor, const int size,
                            const int unrolled) {
    eight v[128];
    const int n = size / 8;
    _Pragma("GCC unroll 16") for (int i = 0; i < n; i++) {
        eight a;
        memcpy(&a, x + 8 * i, sizeof a);
        if (signs) {
            eight s;
            memcpy(&s, signs + 8 * i, sizeof s);
            a *= s;
        }
        a = BUTTERFLY(a, SHUFFLE(a, a, 1, 0, 3, 2, 5, 4, 7, 6), 0, -1, 0, -1, 0, -1, 0, -1);
        a = BUTTERFLY(a, SHUFFLE(a, a, 2, 3, 0, 1, 6, 7, 4, 5), 0, 0, -1, -1, 0, 0, -1, -1);
        a = BUTTERFLY(a, SHUFFLE(a, a, 4, 5, 6, 7, 0, 1, 2, 3), 0, 0, 0, 0, -1, -1, -1, -1);
        v[i] = a;
    }
    if (unrolled) { /* everything stays in registers */
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
        const eight a = v[i] * factor;
        memcpy(out + 8 * i, &a, sizeof a);
    }
}

/* Values begin..end, blocks of `size` that do not cross rows of `columns`. */
TARGET static void NAME(rotate)(const float *x, float *out, const float *signs, int64_t begin,
                                int64_t end, int64_t columns, float factor, int size) {
    for (int64_t i = begin; i < end; i += size) {
        const float *own = signs ? signs + i % columns : signs;
        switch (size) {
        case 16: NAME(rotate_as)(x + i, out + i, own, factor, 16, 1); break;
        case 32: NAME(rotate_as)(x + i, out + i, own, factor, 32, 1); break;
        case 64: NAME(rotate_as)(x + i, out + i, own, factor, 64, 1); break;
        case 128: NAME(rotate_as)(x + i, out + i, own, factor, 128, 1); break;
        default: NAME(rotate_as)(x + i, out + i, own, factor, size, 0); break;
        }
    }
}
