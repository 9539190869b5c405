/* Quantizing a matrix while it is transposed, once per instruction set: quantize.h includes it. */

/* Bits of the largest magnitude of each of `width` columns, down `length` rows; adds to what amax
 * holds. */
TARGET static void NAME(column_amax)(const float *restrict x, int64_t length, int64_t stride,
                                     int64_t width, int32_t *restrict amax) {
    for (int64_t i = 0; i < length; i++)
        for (int64_t j = 0; j < width; j++) {
            const int32_t magnitude = bits_of(x[i * stride + j]) & ~SIGN_BIT;
            amax[j] = magnitude > amax[j] ? magnitude : amax[j];
        }
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
    if (width == NAME(WIDE_TILE) && (ROUNDING) < DIRECTED && !(WIDE))                          \
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
