/* Fake-quantization on the CPU, bit for bit what experiments/quant/block.py defines.
 *
 * One pass where the arithmetic allows: a block's amax, its scale, and its values rounded while
 * they are in cache.  Compiled once per instruction set (avx512.c, avx2.c, plain.c), the best one
 * chosen at run time.  No floating-point contraction (-ffp-contract=off): every operation rounds as
 * the definition says.
 */

#include "kernels.h"

static const kernels *const ALL_SETS[] = {
#if X86
    &lowbit_avx512,
    &lowbit_avx2,
#endif
    &lowbit_plain,
};

static int supported(const kernels *set) {
#if X86
    if (set == &lowbit_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("fma");
    if (set == &lowbit_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return set == &lowbit_plain;
}

static const kernels *active;

int64_t lowbit_format_size(void) { return sizeof(lowbit_format); }

/* Choose the named instruction set, or the best one for "".  Returns its name, NULL if this
 * processor lacks it.  Not to be called while another thread quantizes. */
const char *lowbit_select(const char *name) {
    for (size_t i = 0; i < sizeof ALL_SETS / sizeof *ALL_SETS; i++)
        if (supported(ALL_SETS[i]) && (!*name || !strcmp(name, ALL_SETS[i]->name))) {
            active = ALL_SETS[i];
            return active->name;
        }
    return NULL;
}

typedef struct {
    lowbit_format format;
    const lowbit_rotation *rotation; /* NULL for none */
    const float *x;
    float *out;
    const float *noise;
    int streamed;
    int threads;
} job;

/* Values that pass through a buffer at a time: fewer where they come from memory. */
static int64_t piece_of(const job *j) { return j->streamed ? PIECE : 2 * PIECE; }

/* n values as they are to be quantized: those of x, or rotated ones in `own`. */
static const float *values(const job *j, int64_t first, int64_t n, float *own) {
    if (!j->rotation)
        return j->x + first;
    active->rotate(j->rotation, j->x + first, own, first, n);
    return own;
}

/* The next PIECE values, which would otherwise be waited for while nothing is written. */
static inline void fetch(const float *x) {
    for (int64_t i = 0; i < PIECE; i += 16)
        __builtin_prefetch(x + i, 0, 2);
}

static int32_t amax_of(const job *j, int64_t first, int64_t n) {
    int32_t amax = 0;
    const int64_t step = j->rotation ? PIECE : CHUNK;
#pragma omp parallel for num_threads(j->threads) if (j->threads > 1) reduction(max : amax)
    for (int64_t i = 0; i < n; i += step) {
        _Alignas(64) float own[PIECE];
        const int64_t length = n - i < step ? n - i : step;
        if (j->rotation)
            fetch(j->x + first + i + step);
        const int32_t part = active->amax(values(j, first + i, length, own), length);
        amax = part > amax ? part : amax;
    }
    return amax;
}

/* out = x rotated, all n values; returns their amax if that is `wanted`, else 0. */
static int32_t rotate_all(const job *j, int64_t n, int wanted) {
    int32_t amax = 0;
    const int64_t step = piece_of(j);
#pragma omp parallel for num_threads(j->threads) if (j->threads > 1) reduction(max : amax)
    for (int64_t i = 0; i < n; i += CHUNK) {
        const int64_t end = n - i < CHUNK ? n : i + CHUNK;
        for (int64_t k = i; k < end; k += step) {
            const int64_t length = end - k < step ? end - k : step;
            _Alignas(64) float own[PIECE];
            float *rotated = j->streamed ? own : j->out + k;
            active->rotate(j->rotation, j->x + k, rotated, k, length);
            if (wanted) {
                const int32_t part = active->amax(rotated, length);
                amax = part > amax ? part : amax;
            }
            if (j->streamed) {
                fetch(j->x + k + PIECE);
                active->stream(own, j->out + k, length);
            }
        }
        if (j->streamed)
            FENCE();
    }
    return amax;
}

static int two_levels(const lowbit_format *f) {
    return f->scale == TWO_LEVEL || f->scale == FOUR_OVER_SIX;
}

static float two_level_scale(const lowbit_format *f, int32_t amax_bits) {
    if (amax_bits >= EXPONENT_BITS)
        return NAN;
    const float scale = float_of(amax_bits) / f->top;
    return scale > SMALLEST_NORMAL ? scale : SMALLEST_NORMAL;
}

/* n <= CHUNK values, a multiple of `unit`, which share `scale`; or, if block is not 0, every
 * `block` of them a scale of their own, on top of this one. */
static void quantize_chunk(const job *j, int64_t first, int64_t n, int64_t unit, int64_t block,
                           float scale) {
    _Alignas(64) float own[CHUNK], result[CHUNK];
    const int64_t buffered = unit < piece_of(j) ? piece_of(j) / unit * unit : unit;
    const int64_t step = j->rotation || j->streamed ? buffered : n;
    /* in `result` first, unless it can be written past the caches as it comes */
    const int apart = j->streamed && (block || (intptr_t)(j->out + first) % 64);
    for (int64_t i = first; i < first + n; i += step) {
        const int64_t length = first + n - i < step ? first + n - i : step;
        const float *x = values(j, i, length, own);
        const float *noise = j->noise ? j->noise + i : NULL;
        float *out = apart ? result : j->out + i;
        if (block)
            active->tiles(&j->format, x, j->streamed ? j->x + i : NULL, out, noise, i,
                          length / block, block, 1, 0, scale);
        else
            active->span(&j->format, x, j->streamed ? j->x + i + step : x, out, noise, i, length,
                         scale, j->streamed && !apart);
        if (apart)
            active->stream(result, j->out + i, length);
    }
    if (j->streamed)
        FENCE();
}

/* n values in chunks that are multiples of `unit`; otherwise as above. */
static void quantize_all(const job *j, int64_t first, int64_t n, int64_t unit, int64_t block,
                         float scale) {
    const int64_t step = CHUNK / unit * unit;
#pragma omp parallel for num_threads(j->threads) if (j->threads > 1)
    for (int64_t i = 0; i < n; i += step)
        quantize_chunk(j, first + i, n - i < step ? n - i : step, unit, block, scale);
}

static lowbit_format with_key(const lowbit_format *format, uint64_t key) {
    lowbit_format keyed = *format;
    keyed.key_low = (uint32_t)key;
    keyed.key_high = (uint32_t)(key >> 32);
    return keyed;
}

/* out = quantize(x): n values, every `block` consecutive ones share a scale; noise only for
 * STOCHASTIC.  x and out do not overlap.  If hadamard is not 0 x is rotated first, as by
 * lowbit_rotate; the larger one of hadamard and block is then a multiple of the other. */
void lowbit_quantize(const lowbit_format *format, const float *x, float *out, const float *noise,
                     uint64_t key, int64_t n, int64_t block, const float *signs, int64_t columns,
                     float factor, int hadamard, int threads) {
    const lowbit_rotation rotation = {signs, columns, factor, hadamard};
    job j = {with_key(format, key), hadamard ? &rotation : NULL, x, out, noise,
             n >= STREAMED, threads};
    const lowbit_format *f = &j.format;
    const int64_t size = hadamard ? hadamard : 1, unit = block < size ? size : block;
    if (f->scale == UNSCALED) {
        quantize_all(&j, 0, n, size, 0, 1.0f);
        return;
    }
    const int apart = block <= MOST_VALUES || (n / block >= threads && unit <= CHUNK);
    const int overall = two_levels(f) || (!apart && block == n);
    int32_t amax = 0;
    if (hadamard && (overall || !apart) && !j.streamed) { /* not twice: from here on in place */
        amax = rotate_all(&j, n, overall);
        j.rotation = NULL;
        j.x = out;
    } else if (overall) {
        amax = amax_of(&j, 0, n);
    }
    const float tensor_scale = two_levels(f) ? two_level_scale(f, amax) : 0.0f;
    if (apart) {
        quantize_all(&j, 0, n, unit, block, tensor_scale);
        return;
    }
    for (int64_t first = 0; first < n; first += block) {
        if (block < n)
            amax = amax_of(&j, first, block);
        float scale;
        active->scales(f, &amax, 1, tensor_scale, &scale);
        quantize_all(&j, first, block, size, 0, scale);
    }
}

/* out = quantize(x): rows of `columns`, tiles of `size` x `size` share a scale.  Otherwise as
 * above. */
void lowbit_quantize_tiles(const lowbit_format *format, const float *x, float *out,
                           const float *noise, uint64_t key, int64_t rows, int64_t columns,
                           int64_t size, int threads) {
    const int64_t n = rows * columns, step = size * columns;
    const job j = {with_key(format, key), NULL, x, out, noise, 0, threads};
    const float tensor_scale =
        two_levels(format) ? two_level_scale(format, amax_of(&j, 0, n)) : 0.0f;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i += step)
        active->tiles(&j.format, x + i, NULL, out + i, noise ? noise + i : noise, i,
                      columns / size, size, size, columns, tensor_scale);
}

/* Rows begin..end in strips of `height`, those of the same rows one after the other, as they lie in
 * memory.  Every `block` rows of a column share a scale, or all of them those given if not NULL. */
static void quantize_strips(const job *j, int64_t rows, int64_t columns, int64_t begin, int64_t end,
                            int64_t height, int64_t block, float tensor_scale,
                            const float *scale) {
    const int64_t fitting = j->rotation ? MOST_ROTATED / height : STRIP;
    const int64_t width = fitting < STRIP ? fitting : STRIP;
    const int64_t down = (end - begin + height - 1) / height;
    const int64_t across = (columns + width - 1) / width;
#pragma omp parallel for num_threads(j->threads) if (j->threads > 1)
    for (int64_t i = 0; i < down * across; i++) {
        const int64_t row = begin + i / across * height, column = i % across * width;
        active->strip(&j->format, j->rotation, j->x, j->out, j->noise, rows, columns, row,
                      end - row < height ? end - row : height, column,
                      columns - column < width ? columns - column : width, block, tensor_scale,
                      scale);
    }
}

/* out = x rotated down its columns; returns amax. */
static int32_t rotate_strips(const job *j, int64_t rows, int64_t columns) {
    const int64_t size = j->rotation->size, across = (columns + STRIP - 1) / STRIP;
    int32_t amax = 0;
#pragma omp parallel for num_threads(j->threads) if (j->threads > 1) reduction(max : amax)
    for (int64_t i = 0; i < rows / size * across; i++) {
        const int64_t row = i / across * size, column = i % across * STRIP;
        const int64_t width = columns - column < STRIP ? columns - column : STRIP;
        float *out = j->out + row * columns + column;
        active->rotate_columns(j->rotation, j->x + row * columns + column, columns, out, columns,
                               row, size, width);
        int32_t own[STRIP] = {0};
        active->column_amax(out, size, columns, width, own);
        for (int64_t k = 0; k < width; k++)
            amax = own[k] > amax ? own[k] : amax;
    }
    return amax;
}

/* The transpose of out = quantize of the transpose of x; both lie as [rows, columns].  Every
 * `block` consecutive rows of a column share a scale, or all values if block is larger than rows;
 * with `tiles` those of `block` columns, too.  Noise and the index of a draw are those of the
 * transpose, as is a rotation, of which rows is a multiple.  Returns 0, or 1 if there is no memory
 * for the scales. */
int lowbit_quantize_columns(const lowbit_format *format, const float *x, float *out,
                            const float *noise, uint64_t key, int64_t rows, int64_t columns,
                            int64_t block, int tiles, const float *signs, float factor,
                            int hadamard, int threads) {
    const lowbit_rotation rotation = {signs, rows, factor, hadamard};
    job j = {with_key(format, key), hadamard ? &rotation : NULL, x, out, noise, 0, threads};
    const lowbit_format *f = &j.format;
    const int whole = block > rows, at_once = block <= TALL && !whole && !tiles;
    int32_t amax = 0;
    if (hadamard && (!at_once || two_levels(f))) { /* not twice: from here on in place */
        amax = rotate_strips(&j, rows, columns);
        j.rotation = NULL;
        j.x = out;
    } else if (whole || two_levels(f)) {
        amax = amax_of(&j, 0, rows * columns);
    }
    const float tensor_scale = two_levels(f) ? two_level_scale(f, amax) : 0.0f;
    if (at_once) {
        const int64_t height = j.rotation && hadamard > block ? hadamard : block;
        quantize_strips(&j, rows, columns, 0, rows, height, block, tensor_scale, NULL);
        return 0;
    }
    int32_t *column_amax = malloc((size_t)columns * (sizeof(int32_t) + sizeof(float)));
    if (!column_amax)
        return 1;
    float *scale = (float *)(column_amax + columns);
    const int64_t down = whole ? rows : block, sharing = tiles ? block : 1;
    const int64_t across = sharing < STRIP ? STRIP / sharing * sharing : sharing;
    for (int64_t row = 0; row < rows; row += down) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int64_t c = 0; c < columns; c += across) {
            const int64_t width = columns - c < across ? columns - c : across;
            int32_t *own = column_amax + c;
            for (int64_t i = 0; i < width; i++)
                own[i] = whole ? amax : 0;
            if (!whole)
                active->column_amax(j.x + row * columns + c, block, columns, width, own);
            for (int64_t i = 0; i < width; i += sharing) {
                for (int64_t k = i + 1; k < i + sharing; k++)
                    own[i] = own[k] > own[i] ? own[k] : own[i];
                for (int64_t k = i + 1; k < i + sharing; k++)
                    own[k] = own[i];
            }
            active->scales(f, own, width, tensor_scale, scale + c);
        }
        quantize_strips(&j, rows, columns, row, row + down, 32, 32, tensor_scale, scale);
    }
    free(column_amax);
    return 0;
}

/* out = x rotated, n values, rows of `columns`: multiplied by signs[columns], unless NULL, then
 * every `hadamard` (16 to 1024) of them by the Walsh-Hadamard matrix, then by the factor. */
void lowbit_rotate(const float *x, float *out, int64_t n, const float *signs, int64_t columns,
                   float factor, int hadamard, int threads) {
    const lowbit_rotation rotation = {signs, columns, factor, hadamard};
    const job j = {.rotation = &rotation, .x = x, .out = out, .streamed = n >= STREAMED,
                   .threads = threads};
    rotate_all(&j, n, 0);
}

/* out = n random signs. */
void lowbit_signs(float *out, uint64_t key, int64_t n) { active->signs(out, key, n); }
