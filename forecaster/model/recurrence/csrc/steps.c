// Compiled kernel of the recurrent layers (Elman, GRU, LSTM): forward and backward over all steps, and rollouts, in float32.
//
// Rows are independent: each thread takes some rows through all steps. The arithmetic is in tiles.h, steps.h and rolls.h, built
// once per instruction set; the one to use is detected at run time. equations.py computes the same layer in torch.

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

// Mirrored by `_RolloutStruct` in library.py: a network that first reads `steps` segments (or none) and then predicts `blocks`.
// Arrays are contiguous.
struct rollout {
    int64_t kind, layers, rows, steps, blocks, segment, hidden, padded;
    int64_t places, every;     // number of origins whose state is returned, segments between them; the last is at the end
    double runaway;            // factor on the largest scaled value; forecasts beyond it count as diverged
    const float *packed;       // weights of the layers, each packed by `pack`
    const float *output;       // segment by padded, followed by the biases
    const float *values;       // row, step, time point of the segment: scaled, NaN where missing
    float *states, *cells;     // initial states: row, layer, unit; or states found at the origins: row, origin, layer, unit
    float *bound;              // divergence bounds in the same order, per row or origin
    float *told;               // forecasts: row, block, time point of the segment
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
#define FIRST(n) (__mmask16)((1u << (n)) - 1)
#define PART_LOAD(from, n) (vector) _mm512_maskz_loadu_ps(FIRST(n), from)
#define PART_STORE(to, x, n) _mm512_mask_storeu_ps(to, FIRST(n), (__m512)(x))
#include "tiles.h"
#include "steps.h"
#include "rolls.h"

#define LANES 8
#define TALL 3
#define BESIDE 2
#define FUNCTION __attribute__((target("avx2,fma"))) static inline
#define NAME(x) x##_avx2
#define LEAST(a, b) (vector) _mm256_min_ps((__m256)(a), (__m256)(b))
#define MOST(a, b) (vector) _mm256_max_ps((__m256)(a), (__m256)(b))
#define FIRST(n) _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define PART_LOAD(from, n) (vector) _mm256_maskload_ps(from, FIRST(n))
#define PART_STORE(to, x, n) _mm256_maskstore_ps(to, FIRST(n), (__m256)(x))
#include "tiles.h"
#include "steps.h"
#include "rolls.h"

// Returns the floats per vector of this machine: 16 (AVX-512), 8 (AVX2), or 0 if it has neither.
int64_t lanes(void) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return 16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
    return 0;
}

// Version of this interface; compared with LIBRARY_VERSION in library.py.
int version(void) { return 2; }

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

static void take_bands(void *shared) {
    struct bands *bands = shared;
    const int64_t rows = bands->rollout->rows;
    for (;;) {
        int64_t first = __atomic_fetch_add(&bands->next, bands->band, __ATOMIC_RELAXED);
        if (first >= rows) return;
        int64_t last = first + bands->band < rows ? first + bands->band : rows;
        int done = bands->width == 16 ? go_avx512(bands->rollout, first, last) : go_avx2(bands->rollout, first, last);
        if (!done) __atomic_store_n(&bands->failed, 1, __ATOMIC_RELAXED);
    }
}

// Runs a rollout on vectors of `width` floats, `band` rows at a time; the other arguments and the result are as in `run`.
int64_t roll(const struct rollout *rollout, int64_t band, int64_t width, int64_t threads,
             void (*parallel)(void (*)(void *), void *, unsigned, unsigned)) {
    struct bands bands = {rollout, width, band, 0, 0};
    if (parallel && threads > 1 && rollout->rows > band)
        parallel(take_bands, &bands, (unsigned)threads, 0);
    else
        take_bands(&bands);
    return bands.failed;
}
