/* Quantizing down the columns of a matrix, once per instruction set: quantize.h includes it.
 *
 * What a GEMM sums over is then not the axis that lies in memory; columns side by side fill the
 * registers, so nothing has to be transposed.
 */

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

/* LANES columns of `size` rows, a constant that fits the registers: signs, then the sums and
 * differences of rows at distance 1, 2, 4, ... in turn, then the factor. */
INSTANCE void NAME(rotate_few)(const float *x, int64_t stride, float *out, int64_t out_stride,
                               const float *signs, float factor, const int size) {
    NAME(vector) v[32];
    _Pragma("GCC unroll 32") for (int i = 0; i < size; i++) {
        v[i] = NAME(load)(x + i * stride, LANES);
        if (signs)
            v[i] *= signs[i];
    }
    _Pragma("GCC unroll 8") for (int h = 1; h < size; h *= 2)
        _Pragma("GCC unroll 16") for (int k = 0; k < size / 2; k++)
            NAME(butterfly)(v + k / h * 2 * h + k % h, h);
    _Pragma("GCC unroll 32") for (int i = 0; i < size; i++)
        NAME(store)(out + i * out_stride, v[i] * factor, LANES);
}

/* The same of any size from 16. */
INLINE void NAME(rotate_many)(const float *x, int64_t stride, float *out, int64_t out_stride,
                              const float *signs, float factor, int size) {
    for (int i = 0; i < size; i += 16)
        NAME(rotate_few)(x + i * stride, stride, out + i * out_stride, out_stride,
                         signs ? signs + i : signs, 1.0f, 16);
    for (int h = 16; h < size; h *= 2) {
        const float last = 2 * h == size ? factor : 1.0f;
        for (int k = 0; k < size / 2; k++) {
            float *above = out + (k / h * 2 * h + k % h) * out_stride;
            float *below = above + h * out_stride;
            const NAME(vector) a = NAME(load)(above, LANES), b = NAME(load)(below, LANES);
            NAME(store)(above, (a + b) * last, LANES);
            NAME(store)(below, (a - b) * last, LANES);
        }
    }
}

/* The same of one column. */
INLINE void NAME(rotate_one)(const float *x, int64_t stride, float *out, int64_t out_stride,
                             const float *signs, float factor, int size) {
    for (int i = 0; i < size; i++)
        out[i * out_stride] = x[i * stride] * (signs ? signs[i] : 1.0f);
    for (int h = 1; h < size; h *= 2)
        for (int k = 0; k < size / 2; k++) {
            float *above = out + (k / h * 2 * h + k % h) * out_stride;
            float *below = above + h * out_stride;
            const float a = *above, b = *below;
            *above = a + b;
            *below = a - b;
        }
    for (int i = 0; i < size; i++)
        out[i * out_stride] *= factor;
}

/* `length` rows, the first one being `row`, of `width` columns; x and out do not overlap. */
TARGET static void NAME(rotate_columns)(const lowbit_rotation *r, const float *x, int64_t stride,
                                        float *out, int64_t out_stride, int64_t row,
                                        int64_t length, int64_t width) {
    for (int64_t i = 0; i < length; i += r->size) {
        const float *signs = r->signs ? r->signs + row + i : NULL;
        const float *from = x + i * stride;
        float *to = out + i * out_stride;
        int64_t j = 0;
#define ROTATE(FUNCTION, ...)                                                                      \
    for (; j + LANES <= width; j += LANES)                                                         \
        NAME(FUNCTION)(from + j, stride, to + j, out_stride, __VA_ARGS__)
        if (r->size == 16 && signs)
            ROTATE(rotate_few, signs, r->factor, 16);
        else if (r->size == 16)
            ROTATE(rotate_few, NULL, r->factor, 16);
        else if (r->size == 32 && signs)
            ROTATE(rotate_few, signs, r->factor, 32);
        else if (r->size == 32)
            ROTATE(rotate_few, NULL, r->factor, 32);
        else
            ROTATE(rotate_many, signs, r->factor, r->size);
#undef ROTATE
        for (; j < width; j++)
            NAME(rotate_one)(from + j, stride, to + j, out_stride, signs, r->factor, r->size);
    }
}

/* `length` rows of `width` columns, each column with its own scale; out has x's place and stride
 * in a matrix of `columns`.  A draw has the index of its value in the transposed matrix, of which
 * `rows` are a row: that of the first value here is `first`. */
INLINE void NAME(rows_as)(const lowbit_format *f, const float *x, int64_t stride, float *out,
                          int64_t columns, const float *noise, int64_t first, int64_t rows,
                          int64_t length, const int64_t width, const float *restrict scale,
                          const float *restrict inverse, const int rounding, const int scaling,
                          const int wide) {
    const lowbit_format own = *f;
    for (int64_t i = 0; i < length; i++) {
        const float *from = x + i * stride;
        float *to = out + i * columns;
        NAME(words) weyl = NAME(weyl)(f->key_low, first + i, rows);
#define REGISTER(SOME)                                                                             \
    do {                                                                                           \
        NAME(vector) draw = {0};                                                                   \
        if (rounding == STOCHASTIC)                                                                \
            for (int k = 0; k < (SOME); k++)                                                       \
                draw[k] = noise[first + i + (j + k) * rows];                                       \
        else if (rounding == STOCHASTIC_COUNTER)                                                   \
            draw = NAME(uniform)(weyl, own.key_high);                                              \
        const NAME(vector) result = NAME(value)(                                                   \
            &own, NAME(load)(from + j, SOME), NAME(load)(scale + j, SOME),                         \
            NAME(load)(inverse + j, SOME), draw, rounding, scaling, wide);                         \
        NAME(store)(to + j, result, SOME);                                                         \
    } while (0)
        int64_t j = 0;
        for (; j + LANES <= width; j += LANES, weyl += LANES * (uint32_t)rows * WEYL)
            REGISTER(LANES);
        if (j < width)
            REGISTER((width - j) & (LANES - 1));
#undef REGISTER
    }
}

INSTANCE void NAME(rows_by)(const lowbit_format *f, const float *x, int64_t stride, float *out,
                            int64_t columns, const float *noise, int64_t first, int64_t rows,
                            int64_t length, const int64_t width, float *scale, float *inverse,
                            const int rounding, const int wide) {
    const int scaling = NAME(scaling)(f, scale, inverse, width);
#define ROWS(SCALING)                                                                              \
    NAME(rows_as)(f, x, stride, out, columns, noise, first, rows, length, width, scale, inverse,   \
                  rounding, SCALING, wide)
    FOR_SCALING(ROWS, scaling, rounding, wide)
#undef ROWS
}

/* `length` rows from `row` on, of `width` <= STRIP columns from `column` on, out of a matrix
 * [rows, columns], into the same place of out; x may be out, unless it is to be rotated.  Every
 * `block` rows of a column share a scale, or all of them those given if not NULL. */
TARGET static void NAME(strip)(const lowbit_format *f, const lowbit_rotation *r, const float *x,
                               float *out, const float *noise, int64_t rows, int64_t columns,
                               int64_t row, int64_t length, int64_t column, int64_t width,
                               int64_t block, float tensor_scale, const float *given) {
    _Alignas(64) float rotated[MOST_ROTATED];
    float scale[STRIP], inverse[STRIP];
    if (given)
        memcpy(scale, given + column, (size_t)width * sizeof *scale);
    const float *from = x + row * columns + column;
    int64_t stride = columns;
    if (r) {
        NAME(rotate_columns)(r, from, columns, rotated, width, row, length, width);
        from = rotated;
        stride = width;
    }
    const int64_t step = given ? length : block;
    for (int64_t i = row; i < row + length; i += step, from += step * stride) {
        if (!given) {
            int32_t amax[STRIP] = {0};
            NAME(column_amax)(from, step, stride, width, amax);
            NAME(scales)(f, amax, width, tensor_scale, scale);
        }
        float *to = out + i * columns + column;
        const int64_t first = column * rows + i;
#define ROWS(ROUNDING, WIDTH, WIDE)                                                                \
    NAME(rows_by)(f, from, stride, to, columns, noise, first, rows, step, WIDTH, scale, inverse,   \
                  ROUNDING, WIDE)
#define CASE(ROUNDING, WIDE)                                                                       \
    if (width == STRIP && (ROUNDING) != DIRECTED && !(WIDE))                                       \
        ROWS(ROUNDING, STRIP, WIDE);                                                               \
    else                                                                                           \
        ROWS(ROUNDING, width, WIDE)
        if (f->wide)
            FOR_ROUNDING(f, CASE, 1)
        else
            FOR_ROUNDING(f, CASE, 0)
#undef CASE
#undef ROWS
    }
}
