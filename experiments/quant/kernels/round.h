/* Rounding a register of values, once per instruction set: quantize.h includes it.
 *
 * Written with the compiler's vectors, not as loops for it to vectorise: it then keeps constants in
 * registers and makes no second loop for the rest, which is a quarter of the time.
 */

typedef float NAME(vector) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(ints) __attribute__((vector_size(4 * LANES)));
typedef uint32_t NAME(words) __attribute__((vector_size(4 * LANES)));

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

#define ALL(c) ((NAME(vector)){EACH_LANE(SAME, c)})
#define ALL_INTS(c) ((NAME(ints)){EACH_LANE(SAME, c)})
/* Of lanes, where all bits of the mask are set those of a, where none those of b. */
#define SELECT(mask, a, b) (((NAME(ints))(a) & (mask)) | ((NAME(ints))(b) & ~(mask)))

/* n <= LANES values, zeros after them. */
INLINE NAME(vector) NAME(load)(const float *x, int64_t n) {
    NAME(vector) v;
    if (n == LANES) {
        memcpy(&v, x, sizeof v);
    } else { /* or the register would lie in memory, always */
        float part[LANES] = {0};
        memcpy(part, x, (size_t)n * sizeof *x);
        memcpy(&v, part, sizeof v);
    }
    return v;
}

INLINE void NAME(store)(float *out, NAME(vector) v, int64_t n) {
    if (n == LANES) {
        memcpy(out, &v, sizeof v);
    } else {
        float part[LANES];
        memcpy(part, &v, sizeof v);
        memcpy(out, part, (size_t)n * sizeof *out);
    }
}

/* Of LANES indices `stride` apart, the part of a draw that is linear in them: kernels/noise.py. */
INLINE NAME(words) NAME(weyl)(uint32_t key_low, int64_t first, int64_t stride) {
    const NAME(words) lanes = {EACH_LANE(NUMBER, 0)};
    return lanes * ((uint32_t)stride * WEYL) + ((uint32_t)first * WEYL + key_low);
}

/* Uniform in [0, 1), 24 bits: kernels/noise.py. */
INLINE NAME(vector) NAME(uniform)(NAME(words) weyl, uint32_t key_high) {
    NAME(words) h = weyl ^ weyl >> 16;
    h = (h + key_high) * 0x21F0AAADu;
    h ^= h >> 15;
    h *= 0x735A2D97u;
    return __builtin_convertvector((NAME(ints))(h >> 8), NAME(vector)) * 0x1p-24f;
}

/* Whether to leave the lower neighbour for the upper one, DIRECTED.  `remainder`, exact, is in
 * ulps; of the smallest values it is rounded to zero, so some go by `inexact`. */
INLINE NAME(ints) NAME(rounds_up)(const lowbit_format *f, NAME(vector) remainder,
                                  NAME(ints) inexact, NAME(ints) sign) {
    const NAME(ints) away = (remainder >= 0.5f) & -f->ties_away, negative = sign >> 31;
    return away | (inexact & SELECT(negative, ALL_INTS(-f->down), ALL_INTS(-f->up)));
}

/* To the nearest value of a grid whose smallest normal is `least`, the sign of a zero left open;
 * ulp, |x| and 2^23 ulps are normal numbers.
 *
 * Adding 1.5 * 2^23 ulps makes the adder round to a multiple of the ulp, ties to even.  Without
 * mantissa bits the even *code* decides: 2^k has code k - emin + 1, and where that is even one ulp
 * more is added, so that ties go the other way. */
INLINE NAME(vector) NAME(nearest)(const lowbit_format *f, NAME(vector) x, NAME(ints) least,
                                  const int rounding) {
    const NAME(ints) power = (NAME(ints))MAX((NAME(ints))x & EXPONENT_BITS, least);
    if (rounding == NEAREST_EVEN) { /* the products are exact */
        const float ulps = float_of((ONE_BITS + ((23 - f->mantissa) << 23)) | HALF_BIT);
        const NAME(vector) shifted = FMA((NAME(vector))power, ALL(ulps), x);
        return FMA((NAME(vector))power, ALL(-ulps), shifted);
    }
    const NAME(ints) even = ((power ^ least) >> 23) & 1;
    const NAME(ints) shift = (power + (((23 - f->mantissa) << 23) | HALF_BIT)) | even;
    return (x + (NAME(vector))shift) - (NAME(vector))shift;
}

/* To the grid whose smallest normal is `least`, exponent below 8 bits, |x| < 2^66 least.  Nearest
 * leaves the sign of a zero open, the others give the magnitude. */
INLINE NAME(vector) NAME(round)(const lowbit_format *f, NAME(vector) x, NAME(ints) least,
                                NAME(ints) sign, NAME(vector) draw, const int rounding) {
    if (rounding <= NEAREST_EVEN_CODE)
        return NAME(nearest)(f, x, least, rounding);
    const NAME(ints) power = (NAME(ints))MAX((NAME(ints))x & EXPONENT_BITS, least);
    const NAME(vector) magnitude = (NAME(vector))((NAME(ints))x & ~SIGN_BIT);
    const NAME(ints) ulp_bits = power - (f->mantissa << 23);
    const NAME(vector) ulp = (NAME(vector))ulp_bits;
    /* magnitude / ulp < 2^11 */
    const NAME(vector) steps = magnitude * (NAME(vector))(2 * ONE_BITS - ulp_bits);
    const NAME(vector) lower = TRUNCATE(steps);
    if (rounding != DIRECTED)
        return ADD_WHERE_LESS(draw, steps - lower, lower, ALL(1.0f)) * ulp;
    const NAME(ints) up = NAME(rounds_up)(f, steps - lower, lower * ulp != magnitude, sign);
    return (lower + (NAME(vector))(up & ONE_BITS)) * ulp;
}

/* The same for 8 exponent bits.  Such a format has float32's exponents, so its numbers are the
 * float32 bit patterns without their lowest bits, subnormals included; a carry goes where it
 * should, and the even code is the even pattern.  Of a NaN it makes any number. */
INLINE NAME(vector) NAME(round_wide)(const lowbit_format *f, NAME(vector) scaled, NAME(ints) sign,
                                     NAME(vector) draw, const int rounding) {
    const int shift = 23 - f->mantissa;
    const uint32_t unit = 1u << shift, limit = (uint32_t)bits_of(f->limit);
    const NAME(words) bits = (NAME(words))scaled & ~(uint32_t)SIGN_BIT;
    const NAME(words) lower = bits & -unit, rest = bits & (unit - 1);
    NAME(words) rounded;
    if (rounding <= NEAREST_EVEN_CODE) {
        rounded = (bits + (unit / 2 - 1) + (bits >> shift & 1)) & -unit;
    } else {
        const NAME(vector) remainder = __builtin_convertvector((NAME(ints))rest, NAME(vector)) *
                                       float_of(ONE_BITS - (shift << 23));
        const NAME(ints) up = rounding == DIRECTED
                                  ? NAME(rounds_up)(f, remainder, rest != 0, sign)
                                  : (NAME(ints))(draw < remainder);
        rounded = lower + ((NAME(words))up & unit);
    }
    return (NAME(vector))MIN_WORDS(rounded, limit); /* it may have gone up to 2^128 */
}

/* scale * round(x / scale), the sign of zero kept. */
INLINE NAME(vector) NAME(value)(const lowbit_format *f, NAME(vector) x, NAME(vector) scale,
                                NAME(vector) inverse, NAME(vector) draw, const int rounding,
                                const int scaling, const int wide) {
    if (rounding == UNCLIPPED) {
        const NAME(ints) within = (x >= scale * f->lowest) & (x <= scale * f->limit);
        return (NAME(vector))(within & ONE_BITS);
    }
    const NAME(ints) sign = (NAME(ints))x & SIGN_BIT;
    if (scaling == BY_MOVING) {
        const NAME(vector) cut = CUT(x, scale);
        return COPY_SIGN(NAME(round)(f, cut, (NAME(ints))inverse, sign, draw, rounding), x);
    }
    NAME(vector) scaled;
    if (scaling == BY_NOTHING) {
        scaled = x;
    } else if (scaling == BY_DIVISION) {
        scaled = x / scale;
    } else {
        scaled = x * inverse;
        if (scaling != BY_MULTIPLICATION) /* Markstein: the quotient, correctly rounded */
            scaled = FMA(FMA(-scaled, scale, x), inverse, scaled);
    }
    if (scaling != BY_CORRECTION_WITHIN)
        scaled = CLAMP(scaled, ALL(f->lowest), ALL(f->limit)); /* a NaN stays */
    const NAME(ints) least = ALL_INTS(f->emin_bits);
    const NAME(vector) rounded = wide ? NAME(round_wide)(f, scaled, sign, draw, rounding)
                                      : NAME(round)(f, scaled, least, sign, draw, rounding);
    if (scaling == BY_NOTHING) /* NaN for what is not finite, as elsewhere by its scale */
        return COPY_SIGN(FMA(x, ALL(0.0f), rounded), x);
    return COPY_SIGN(rounded, x) * scale;
}
