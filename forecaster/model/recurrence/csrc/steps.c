// Compiled kernel of the recurrent layers (Elman, GRU, LSTM): forward and backward over all steps, and rollouts, in float32.
//
// Rows are independent: each thread takes some rows through all steps. The arithmetic is in tiles.h, steps.h and rolls.h, built
// once per instruction set; the one to use is detected at run time. vectorized.py computes the same layer in torch.

#if !defined(__x86_64__)
#error "written for x86-64, with AVX2 or AVX-512: elsewhere torch computes the same"
#endif

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define MOST_LAYERS 16
#define ALONE 48 // steps of a single row that a layer takes at once

enum kind { GRU, LSTM, ELMAN };

// Mirrored by `LayerStruct` in library.py. Arrays are contiguous: member, row, step, then units; `padded` is `hidden` rounded up
// to whole vectors.
struct layer {
    int64_t kind, members, rows, steps, features, hidden, padded, pieces, few;
    const float *inputs, *hidden_before, *cell_before, *input_weights, *recurrent_weights, *input_bias, *recurrent_bias;
    const uint8_t *begun;
    float *outputs, *hidden_after, *cell_after;
    float *gates, *cells; // saved for the backward pass, by step before row: 4 * padded and padded floats; NULL if not needed
    const float *d_outputs, *d_hidden_after, *d_cell_after; // gradients of the loss; the last two may be NULL
    float *d_inputs, *d_hidden_before, *d_cell_before;      // d_inputs may be NULL
    float *d_input_weights, *d_recurrent_weights, *d_bias;  // per piece; d_bias holds those of the preactivations
};

// Mirrored by `RolloutStruct` in library.py: a network that first reads `steps` segments (or none) and then predicts `blocks`, or
// a stack of layers that only reads. Arrays are contiguous.
struct rollout {
    int64_t kind, layers, rows, steps, blocks, segment, hidden, padded;
    int64_t places, every;      // number of origins whose state is returned, segments between them; the last is at the end
    int64_t features, residual; // inputs of the lowest layer; first layer that adds its input to its output, `layers` if none
    double runaway;            // factor on the largest scaled value; forecasts beyond it count as diverged
    const float *packed;       // weights of the layers, each packed by `pack`
    const float *output;       // segment by padded, followed by the biases
    const float *values;       // row, step, time point of the segment: scaled, NaN where missing
    float *states, *cells;     // initial states: row, layer, unit; or states found at the origins: row, origin, layer, unit
    float *bound;              // divergence bounds in the same order, per row or origin
    float *forecast;           // forecasts: row, block, time point of the segment
    const float *inputs;       // of a stack: row, step, feature
    const uint8_t *started;    // of a stack: row, step; padding precedes all other steps of its row
    float *outputs;            // of a stack: row, unit, after the last step
};

// Mirrored by `_DenseStruct` in engines/running/kernel_backend.py: outputs = inputs @ weights + bias, then SiLU if `silu`. The weights are panels of four
// vectors of units: panel, feature, unit.
struct dense {
    int64_t rows, features, units, silu;
    const float *inputs, *packed, *bias;
    float *outputs;
};

// Constants of forecaster/model/running_sizes.py and spec/layout.py, and the order of the statistics.
#define LAGS 24
#define CYCLES 5
#define LONG_CYCLES 3
#define STATISTICS 12
#define FORECASTS 8
#define MAX_FEATURE 8.0f
#define MAX_UNITS 2000.0f
#define TINY 1e-8f
enum statistic { STEPS, CHANGE, SEASONAL_CHANGE, FIRST_SEASON, LOW, HIGH, MISSING, SQUARED, PRODUCT, SEASONAL_SQUARED,
                 SEASONAL_PRODUCT, LONG_SQUARED };

// Mirrored by `_PastStruct` in engines/running/kernel_backend.py: what a network with a running scale sees of the past after each segment.
// engines/running/past.py names all sizes and computes the same in numpy.
struct past {
    int64_t rows, steps, segment, season, long_season, block, lookback, phases, older, views;
    double log_season;
    const float *values;              // row, latest values before the first step and those of the steps
    const uint8_t *started, *missing; // row, step
    double *statistics;               // row, statistic: before the first step, replaced by those after the last
    float *features, *scales;         // row, segment, feature; row, segment, level and unit
    float *forecasts;                 // row, forecast, step of the block: after the last segment
};

// Large results are fresh memory whose page faults take as long as the arithmetic, so this requests 2 MiB pages.
static void in_large_pages(float *array, int64_t floats) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 4096, start = ((uintptr_t)array + page - 1) / page * page;
    const uintptr_t end = (uintptr_t)(array + floats) / page * page;
    if (array && floats >= 1 << 20) madvise((void *)start, end - start, MADV_HUGEPAGE);
#else
    (void)array, (void)floats;
#endif
}

static float *take(size_t bytes) {
    void *room = NULL;
    return posix_memalign(&room, 64, bytes) ? NULL : room;
}

static inline int64_t gates_of(const struct layer *l) { return l->kind == LSTM ? 4 : l->kind == GRU ? 3 : 1; }

static inline int64_t sums_of(const struct layer *l) { return l->kind == ELMAN ? 1 : 4; } // n of a GRU is made of two

// Rows that step together: few enough to stay in the L2 cache, many enough to share the cost of loading the weights.
static inline int64_t band_of(int64_t rows) {
    int64_t bands = (rows + 143) / 144;
    return bands ? ((rows + bands - 1) / bands + 5) / 6 * 6 : 1;
}

#define LANES 16
#define TALL 6
#define BESIDE 4
#define FUNCTION __attribute__((target("avx512f,avx512dq,fma"))) static inline
#define NAME(x) x##_avx512
#define LEAST(a, b) (vector) _mm512_min_ps((__m512)(a), (__m512)(b))
#define MOST(a, b) (vector) _mm512_max_ps((__m512)(a), (__m512)(b))
#define ROOT(a) (vector) _mm512_sqrt_ps((__m512)(a))
#define FIRST(n) (__mmask16)((1u << (n)) - 1)
#define PART_LOAD(from, n) (vector) _mm512_maskz_loadu_ps(FIRST(n), from)
#define PART_STORE(to, x, n) _mm512_mask_storeu_ps(to, FIRST(n), (__m512)(x))
#include "tiles.h"
#include "steps.h"
#include "rolls.h"
#include "stacks.h"
#include "pasts.h"

#define LANES 8
#define TALL 3
#define BESIDE 2
#define FUNCTION __attribute__((target("avx2,fma"))) static inline
#define NAME(x) x##_avx2
#define LEAST(a, b) (vector) _mm256_min_ps((__m256)(a), (__m256)(b))
#define MOST(a, b) (vector) _mm256_max_ps((__m256)(a), (__m256)(b))
#define ROOT(a) (vector) _mm256_sqrt_ps((__m256)(a))
#define FIRST(n) _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define PART_LOAD(from, n) (vector) _mm256_maskload_ps(from, FIRST(n))
#define PART_STORE(to, x, n) _mm256_maskstore_ps(to, FIRST(n), (__m256)(x))
#include "tiles.h"
#include "steps.h"
#include "rolls.h"
#include "stacks.h"
#include "pasts.h"

// Returns the floats per vector of this machine: 16 (AVX-512), 8 (AVX2), or 0 if it has neither.
int64_t lanes(void) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
    return 0;
}

// Version of this interface; compared with LIBRARY_VERSION in library.py.
int version(void) { return 3; }

struct work {
    const struct layer *layer;
    int64_t width, backward, next, failed;
};

static int64_t take_piece(const struct work *work, int64_t number) {
    const struct layer *l = work->layer;
    int64_t member = number / l->pieces, piece = number % l->pieces;
    int64_t first = l->rows * piece / l->pieces, last = l->rows * (piece + 1) / l->pieces;
#define WITH(set) (work->backward ? backward_##set(l, member, piece, first, last) : forward_##set(l, member, first, last))
    return work->width == 16 ? WITH(avx512) : WITH(avx2);
}

static void take_pieces(void *shared) {
    struct work *work = shared;
    for (;;) {
        int64_t number = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (number >= work->layer->members * work->layer->pieces) return;
        if (!take_piece(work, number)) __atomic_store_n(&work->failed, 1, __ATOMIC_RELAXED);
    }
}

// Runs a layer on vectors of `width` floats, 8 or 16. `parallel` is GOMP_parallel of the OpenMP runtime whose threads are used,
// or NULL for one thread: the threads of two runtimes in one process would compete. Returns nonzero if memory ran out.
int64_t run(const struct layer *layer, int64_t backward, int64_t width, int64_t threads,
            void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    struct work work = {layer, width, backward, 0, 0};
    int64_t places = layer->members * layer->rows * layer->steps;
    if (backward)
        in_large_pages(layer->d_inputs, places * layer->features);
    else {
        in_large_pages(layer->outputs, places * layer->hidden);
        in_large_pages(layer->gates, places * 4 * layer->padded);
        in_large_pages(layer->cells, places * layer->padded);
    }
    if (parallel && threads > 1 && layer->members * layer->pieces > 1)
        parallel(take_pieces, &work, (unsigned)threads, 0);
    else
        take_pieces(&work);
    return work.failed;
}

// Returns the number of floats of a layer's packed weights.
int64_t size_of_packed(const struct rollout *rollout, int64_t layer, int64_t width) {
    return width == 16 ? packed_avx512(rollout, layer) : packed_avx2(rollout, layer);
}

// Packs a layer's weights for `roll`. Only its sizes, weights and biases are read.
void pack(const struct layer *layer, float *packed, int64_t width) {
    if (width == 16)
        pack_avx512(layer, packed);
    else
        pack_avx2(layer, packed);
}

struct bands {
    const struct rollout *rollout;
    int64_t width, band, next, failed;
};

static int take_band(const struct bands *bands, int64_t first, int64_t last) {
    const struct rollout *o = bands->rollout;
    if (o->inputs) return bands->width == 16 ? read_stack_avx512(o, first, last) : read_stack_avx2(o, first, last);
    return bands->width == 16 ? go_avx512(o, first, last) : go_avx2(o, first, last);
}

static void take_bands(void *shared) {
    struct bands *bands = shared;
    const int64_t rows = bands->rollout->rows;
    for (;;) {
        int64_t first = __atomic_fetch_add(&bands->next, bands->band, __ATOMIC_RELAXED);
        if (first >= rows) return;
        int64_t last = first + bands->band < rows ? first + bands->band : rows;
        if (!take_band(bands, first, last)) __atomic_store_n(&bands->failed, 1, __ATOMIC_RELAXED);
    }
}

// Runs a rollout, or reads inputs with a stack, on vectors of `width` floats, `band` rows at a time; the other arguments and the result are as in `run`.
int64_t roll(const struct rollout *rollout, int64_t band, int64_t width, int64_t threads,
             void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    struct bands bands = {rollout, width, band, 0, 0};
    if (parallel && threads > 1 && rollout->rows > band)
        parallel(take_bands, &bands, (unsigned)threads, 0);
    else
        take_bands(&bands);
    return bands.failed;
}

// Computes a dense layer on vectors of `width` floats.
void apply_dense(const struct dense *dense, int64_t width) {
    if (width == 16)
        dense_avx512(dense);
    else
        dense_avx2(dense);
}

// Views the past of all rows on vectors of `width` floats. Returns nonzero if memory ran out.
int64_t view_past(const struct past *past, int64_t width) {
    return !(width == 16 ? view_rows_avx512(past) : view_rows_avx2(past));
}
