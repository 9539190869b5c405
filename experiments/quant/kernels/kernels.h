/* What every instruction set offers: quantize.c chooses one when it is loaded. */

#include <stdlib.h>

#include "format.h"

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
#define FENCE() _mm_sfence()
#else
#define X86 0
#define FENCE()
#endif

enum {
    MOST_VALUES = 256,  /* in a block of FOUR_OVER_SIX or QUEST */
    CACHED = 1 << 13,   /* values read twice: 32 KiB stay in the first cache */
    FETCHED = 1 << 11,  /* the same, if as many more are fetched meanwhile */
    CHUNK = 1 << 15,    /* that one thread takes at a time: 128 KiB stay in its cache */
    GROUP = 4,          /* registers of blocks whose scales are found together */
    PIECE = 1 << 10,    /* that pass through a buffer at a time, or twice as many */
    STRIP = 64,         /* columns that are quantized together */
    TALL = 256,         /* rows of them that are read twice, at most */
    MOST_ROTATED = 1 << 14, /* values of a strip: the largest rotation of a register of columns */
    STREAMED = 1 << 22, /* from here on a result is written past the caches */
};

typedef struct {
    const char *name;
    int32_t (*amax)(const float *, int64_t);
    void (*scales)(const lowbit_format *, const int32_t *, int64_t, float, float *);
    void (*tiles)(const lowbit_format *, const float *, const float *, float *, const float *,
                  int64_t, int64_t, int64_t, int64_t, int64_t, float);
    void (*span)(const lowbit_format *, const float *, const float *, float *, const float *,
                 int64_t, int64_t, float, int);
    void (*stream)(const float *, float *, int64_t);
    void (*column_amax)(const float *, int64_t, int64_t, int64_t, int32_t *);
    void (*strip)(const lowbit_format *, const lowbit_rotation *, const float *, float *,
                  const float *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                  float, const float *);
    void (*rotate)(const lowbit_rotation *, const float *, float *, int64_t, int64_t);
    void (*rotate_columns)(const lowbit_rotation *, const float *, int64_t, float *, int64_t,
                           int64_t, int64_t, int64_t);
    void (*signs)(float *, uint64_t, int64_t);
} kernels;

__attribute__((visibility("hidden"))) extern const kernels lowbit_avx512, lowbit_avx2, lowbit_plain;
