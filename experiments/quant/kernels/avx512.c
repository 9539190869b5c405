/* The kernels on registers of 16 floats: AVX-512. */

#include "kernels.h"

#if X86
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,fma")))
#define NAME(f) f##_avx512
#define LANES 16
#define HAS_FMA 1
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define MAX(a, b) _mm512_max_epi32((__m512i)(a), (__m512i)(b))
#define COPY_SIGN(a, b)                                                                            \
    (NAME(vector))_mm512_ternarylogic_epi32((__m512i)(a), (__m512i)(b),                            \
                                            _mm512_set1_epi32(SIGN_BIT), 0xD8)
#define CUT(a, limit) _mm512_range_ps(a, limit, 2)
#define CLAMP(a, lowest, limit) _mm512_max_ps(lowest, _mm512_min_ps(limit, a))
#define MIN_WORDS(a, b) _mm512_min_epu32((__m512i)(a), (__m512i)ALL_INTS(b))
#define TRUNCATE(a) _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)
#define ADD_WHERE_LESS(a, b, to, more)                                                             \
    _mm512_mask_add_ps(to, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), to, more)
#define EVERY(mask) (_mm512_movepi32_mask((__m512i)(mask)) == 0xFFFF)
#define STREAM(to, a) _mm512_stream_ps(to, a)
#include "quantize.h"

const kernels lowbit_avx512 = KERNELS(avx512);
#endif
