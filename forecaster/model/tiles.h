// Gates and matrix products for one width of vectors. Included before steps.h, once for each instruction set, with
//   LANES           floats in a vector
//   TALL            rows of a tile: TALL * 4 sums, 4 weights and one input fit the registers
//   FUNCTION        how a function is declared
//   NAME(x)         its name
//   LEAST, MOST     of two vectors, the second where either is not a number
//   PART_LOAD, PART_STORE  the first n < LANES floats; what is not there is 0

typedef float NAME(vector) __attribute__((vector_size(4 * LANES)));
typedef float NAME(anywhere) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t NAME(whole) __attribute__((vector_size(4 * LANES)));

#define vector NAME(vector)
#define AT(p) (*(NAME(anywhere) *)(p))
#define ALL(x) ((x) - (vector){0})
#define UNROLL _Pragma("GCC unroll 8")

FUNCTION int64_t NAME(padded)(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

FUNCTION vector NAME(load)(const float *from, int64_t n) { // the first n of them
    if (n >= LANES) return AT(from);
    return PART_LOAD(from, n);
}

FUNCTION void NAME(store)(float *to, vector x, int64_t n) {
    if (n >= LANES)
        AT(to) = x;
    else
        PART_STORE(to, x, n);
}

// e^x = 2^k e^f with k whole and |f| <= ln 2 / 2, k being the nearest whole number: adding 1.5 * 2^23 rounds to it.
// Both parts of e^x - 1 = (2^k - 1) + 2^k (e^f - 1) are kept, for it is needed where x is small.
FUNCTION void NAME(power)(vector x, vector *two_to_k, vector *rest) {
    x = MOST(ALL(-80.0f), LEAST(ALL(80.0f), x));
    vector shifted = x * 1.44269504f + 12582912.0f;
    vector k = shifted - 12582912.0f;
    vector f = x - k * 0.693359375f; // ln 2 in two parts, the first with few digits
    f = f + k * 2.12194440e-4f;
    vector series = f * 1.3888889e-3f + 8.3333333e-3f; // Taylor, to f^6 / 6!
    series = series * f + 4.1666667e-2f;
    series = series * f + 1.6666667e-1f;
    series = series * f + 0.5f;
    *two_to_k = (vector)(((NAME(whole))shifted << 23) + 0x3f800000);
    *rest = series * f * f + f;
}

FUNCTION vector NAME(sigmoid)(vector x) {
    vector scale, rest;
    NAME(power)(-x, &scale, &rest);
    return 1.0f / (1.0f + scale + scale * rest);
}

FUNCTION vector NAME(tanh)(vector x) { // e / (e + 2) with e = e^2x - 1
    vector scale, rest;
    NAME(power)(2.0f * x, &scale, &rest);
    vector e = scale * rest + (scale - 1.0f);
    return e / (e + 2.0f);
}

// sums[4 i + v] += left[i, k] * right[k, v] over all k, for `rows` by `vectors` sums, both constants where it is called.
FUNCTION __attribute__((always_inline)) void NAME(fixed_tile)(
    int rows, int vectors, vector *sums, const float *left, int64_t left_row, int64_t left_k, const float *right,
    int64_t right_k, int64_t inner) {
    vector sum[TALL][4];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = sums[4 * i + v];
    for (int64_t k = 0; k < inner; k++) {
        vector weights[4];
        UNROLL for (int v = 0; v < vectors; v++) weights[v] = AT(right + k * right_k + v * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            float x = left[i * left_row + k * left_k];
            UNROLL for (int v = 0; v < vectors; v++) sum[i][v] += x * weights[v];
        }
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < vectors; v++) sums[4 * i + v] = sum[i][v];
}

// The same for 1 or TALL rows and 1 to 4 vectors.
FUNCTION void NAME(tile)(int rows, int vectors, vector *sums, const float *left, int64_t left_row, int64_t left_k,
                         const float *right, int64_t right_k, int64_t inner) {
#define CASE(r, v)                                                                              \
    case 8 * r + v:                                                                             \
        NAME(fixed_tile)(r, v, sums, left, left_row, left_k, right, right_k, inner);            \
        return
    switch (8 * rows + vectors) {
        CASE(1, 1); CASE(1, 2); CASE(1, 3); CASE(1, 4);
        CASE(TALL, 1); CASE(TALL, 2); CASE(TALL, 3); CASE(TALL, 4);
    }
#undef CASE
}

// out += left @ right, for right-hand sides in panels of up to four vectors: each contiguous (`right_k` 0), or in place.
FUNCTION void NAME(multiply)(float *out, int64_t out_row, const float *left, int64_t left_row, int64_t left_k,
                             const float *right, int64_t right_k, int64_t rows, int64_t inner, int64_t columns) {
    for (int64_t column = 0; column < columns; column += 4 * LANES) {
        int vectors = columns - column < 4 * LANES ? (int)((columns - column) / LANES) : 4;
        const float *panel = right_k ? right + column : right + column * inner;
        for (int64_t row = 0, high; row < rows; row += high) {
            high = rows - row >= TALL ? TALL : 1;
            vector sums[TALL * 4];
            float *corner = out + row * out_row + column;
            for (int i = 0; i < high; i++)
                for (int v = 0; v < vectors; v++) sums[4 * i + v] = AT(corner + i * out_row + v * LANES);
            NAME(tile)((int)high, vectors, sums, left + row * left_row, left_row, left_k, panel,
                       right_k ? right_k : vectors * LANES, inner);
            for (int i = 0; i < high; i++)
                for (int v = 0; v < vectors; v++) AT(corner + i * out_row + v * LANES) = sums[4 * i + v];
        }
    }
}

// A matrix as panels of four vectors, with zeros after its last column; its rows in turn from `first` on.
FUNCTION void NAME(into_panels)(float *panels, const float *matrix, int64_t rows, int64_t columns, int64_t first) {
    int64_t wide = NAME(padded)(columns);
    for (int64_t column = 0; column < wide; column += 4 * LANES)
        for (int64_t k = 0; k < rows; k++) {
            const float *row = matrix + (k + first) % rows * columns;
            for (int64_t j = column; j < wide && j < column + 4 * LANES; j += LANES, panels += LANES)
                AT(panels) = NAME(load)(row + j, columns - j);
        }
}
