/* The kernels on registers of 8 floats: AVX2. */

#include "kernels.h"

#if X86
#define TARGET __attribute__((target("avx2,fma")))
#define NAME(f) f##_avx2
#define LANES 8
#define HAS_FMA 1
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define MAX(a, b) _mm256_max_epi32((__m256i)(a), (__m256i)(b))
#define COPY_SIGN(a, b) ((NAME(vector))SELECT(ALL_INTS(SIGN_BIT), b, a))
#define CUT(a, limit) CLAMP(a, -(limit), limit)
#define CLAMP(a, lowest, limit) _mm256_max_ps(lowest, _mm256_min_ps(limit, a))
#define MIN_WORDS(a, b) _mm256_min_epu32((__m256i)(a), (__m256i)ALL_INTS(b))
#define TRUNCATE(a) _mm256_round_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)
#define ADD_WHERE_LESS(a, b, to, more) ADD_MASKED(a, b, to, more)
#define EVERY(mask) (_mm256_movemask_ps((__m256)(mask)) == 0xFF)
#define STREAM(to, a) _mm256_stream_ps(to, a)
#include "quantize.h"

const kernels lowbit_avx2 = KERNELS(avx2);
#endif
