/* The Walsh-Hadamard transform, once per instruction set: quantize.h includes it. */

INLINE void NAME(butterfly)(NAME(vector) *v, int h) {
    const NAME(vector) a = v[0], b = v[h];
    v[0] = a + b;
    v[h] = a - b;
}

INSTANCE void NAME(rotate_as)(const float *restrict x, float *restrict out,
                              const float *restrict signs, float factor, const int size) {
    NAME(vector) v[1024 / LANES];
    const int n = size / LANES, in_registers = __builtin_constant_p(size);
    _Pragma("GCC unroll 16") for (int i = 0; i < n; i++) {
        NAME(vector) a = NAME(load)(x + LANES * i, LANES);
        if (signs)
            a *= NAME(load)(signs + LANES * i, LANES);
        /* Of values at distance h in the register: sums and differences.  The product is exact. */
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
    _Pragma("GCC unroll 16") for (int i = 0; i < n; i++)
        NAME(store)(out + LANES * i, v[i] * factor, LANES);
}

/* n values, blocks of `size`; `first` is the place of the first one in the tensor. */
TARGET static void NAME(rotate)(const lowbit_rotation *r, const float *restrict x,
                                float *restrict out, int64_t first, int64_t n) {
    int64_t column = r->signs ? first % r->columns : 0;
#define CASE(SIZE)                                                                                 \
    if (r->signs)                                                                                  \
        for (int64_t i = 0; i < n; i += (SIZE)) {                                                  \
            NAME(rotate_as)(x + i, out + i, r->signs + column, r->factor, SIZE);                   \
            column = column + (SIZE) == r->columns ? 0 : column + (SIZE);                          \
        }                                                                                          \
    else                                                                                           \
        for (int64_t i = 0; i < n; i += (SIZE))                                                    \
            NAME(rotate_as)(x + i, out + i, NULL, r->factor, SIZE);
    switch (r->size) {
    case 16: CASE(16) break;
    case 32: CASE(32) break;
    case 64: CASE(64) break;
    case 128: CASE(128) break;
    default: CASE(r->size)
    }
#undef CASE
}
