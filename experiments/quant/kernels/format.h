/* What a format is, and the scale of a block: experiments/quant/scale.py, one at a time. */

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { /* lowbit_format.rounding; cpu.py has the same lists */
    NEAREST_EVEN,
    NEAREST_EVEN_CODE,  /* formats without mantissa bits */
    STOCHASTIC,         /* draws from an array */
    STOCHASTIC_COUNTER, /* draws computed from a key and the index */
    DIRECTED,           /* as ties_away, up and down say; toward zero if none is set */
    UNCLIPPED, /* 1 for what lies between lowest and limit times its scale, 0 for the rest */
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

enum {
    BY_NOTHING,
    BY_DIVISION,
    BY_MULTIPLICATION,
    BY_CORRECTION,
    BY_CORRECTION_WITHIN, /* FP32: amax itself is the largest value, so there is nothing to cut */
    BY_MOVING, /* the grid instead: `scale` is then its largest value, `inverse` its 2^emin */
};

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
    float most;           /* the largest scale */
    float other_most;
    float lower;          /* E8M0_NEAREST: max / sqrt(2) and max * sqrt(2) */
    float upper;
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

#define SIGN_BIT INT32_MIN
#define EXPONENT_BITS 0x7F800000
#define ONE_BITS 0x3F800000
#define HALF_BIT 0x00400000 /* of a float32's own mantissa */
#define SUBNORMAL_POWER 0x00400000 /* 2^-127 */
#define SMALLEST_NORMAL 0x1p-126f
#define SQRT_2 0x1.6a09e6p+0f /* the float next to it, which lies below */
#define WEYL 0x9E3779B1u /* a prime near 2^32 / golden ratio */

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

/* From which scale on, and up to which, q = x * (1 / scale), corrected once by its remainder, may
 * stand for x / scale.
 *
 * Markstein's theorem wants q within one ulp, which one multiplication does not promise.  But the
 * corrected q errs by less than 2^-22 ulps before it is rounded, so only quotients that close to a
 * midpoint could come out wrong: of these there are 46,517,418 pairs of significands, and
 * tests/support/correct_division.c tries each.  The remainder is exact for x >= 2^-100; below, with this
 * range of scales, x is less than half the smallest step either way. */
static inline float least_scale(const lowbit_format *f) {
    const int step_exponent = (f->emin_bits >> 23) - 127 - f->mantissa;
    return step_exponent >= -28 ? 0x1p-70f : INFINITY;
}

/* With a scale that is a power of two x may also be rounded, as it is, to the grid times the scale:
 * then nothing on the way leaves float32, and what is subnormal rounds to zero either way. */
static inline float largest_scale(const lowbit_format *f) {
    const float most = 0x1p100f / f->limit;
    return most < 0x1p70f ? most : 0x1p70f;
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

/* Of a power of two near amax: in such units no square leaves float32. */
static inline int unit_exponent(int32_t amax_bits) {
    const int exponent = floor_log2(amax_bits) + 1;
    return exponent < -126 ? -126 : exponent > 126 ? 126 : exponent;
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
        const float scaled = amax * power_of_two(-exponent);
        scale = e8m0(exponent + (scaled >= f->upper) - (scaled < f->lower));
    } else if (rule == E8M0_4_3) {
        scale = e8m0(exponent) / 0.75f;
    } else {
        scale = stored_scale(f, amax / f->max / tensor_scale) * tensor_scale;
    }
    scale = scale > f->most ? f->most : scale; /* a NaN stays */
    return amax_bits >= EXPONENT_BITS ? NAN : scale;
}
