/* The kernels for any processor, on the compiler's own registers of 4 floats. */

#include "kernels.h"

#define TARGET
#define NAME(f) f##_plain
#define LANES 4
#define HAS_FMA 0
#define FMA(a, b, c) ((a) * (b) + (c))
#define MAX(a, b) (((a) & ((a) > (b))) | ((b) & ~((a) > (b))))
#define COPY_SIGN(a, b) ((NAME(vector))SELECT(ALL_INTS(SIGN_BIT), b, a))
#define CUT(a, limit) CLAMP(a, -(limit), limit)
#define CLAMP(a, lowest, limit)                                                                    \
    ((NAME(vector))SELECT((a) > (limit), limit, SELECT((a) < (lowest), lowest, a)))
#define MIN_WORDS(a, b) SELECT((NAME(ints))((a) < (b)), a, ALL_INTS((int32_t)(b)))
#define TRUNCATE(a) __builtin_convertvector(__builtin_convertvector(a, NAME(ints)), NAME(vector))
#define ADD_WHERE_LESS(a, b, to, more) ADD_MASKED(a, b, to, more)
#define EVERY(mask) (((mask)[0] & (mask)[1] & (mask)[2] & (mask)[3]) != 0)
#if X86
#define STREAM(to, a) _mm_stream_ps(to, a)
#else
#define STREAM(to, a) memcpy(to, &(a), sizeof(a))
#endif
#if X86 /* for processors older than AVX2 only: a third of the time to compile, .75 of the speed */
#define INSTANCE static __attribute__((noinline, noclone))
#endif
#include "quantize.h"

const kernels lowbit_plain = KERNELS(plain);
