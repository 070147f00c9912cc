// Activation functions and matrix products for one vector width. Included before steps.h, once per instruction set, with
//  LANES           floats per vector
//  TALL            rows of a tile: TALL * 4 sums, 4 weights and one input fit into the registers
//  BESIDE          vectors of each gate that a single row sums at once
//  FUNCTION        declaration specifiers of a function
//  NAME(x)         name with the suffix of the instruction set
//  LEAST, MOST     minimum and maximum of two vectors; the second where either is NaN
//  PART_LOAD, PART_STORE  load and store the first n < LANES floats; the others are 0

typedef float NAME(vector) __attribute__((vector_size(4 * LANES)));
typedef float NAME(anywhere) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t NAME(whole) __attribute__((vector_size(4 * LANES)));

#define vector NAME(vector)
#define AT(p) (*(NAME(anywhere) *)(p))
#define ALL(x) ((x) - (vector){0})
#define PANEL (4 * LANES)
#define UNROLL _Pragma("GCC unroll 8")

FUNCTION int64_t NAME(padded)(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

FUNCTION vector NAME(load)(const float *from, int64_t n) { // the first n floats, the others 0
    if (n >= LANES) return AT(from);
    return PART_LOAD(from, n);
}

FUNCTION void NAME(store)(float *to, vector x, int64_t n) {
    if (n >= LANES)
        AT(to) = x;
    else
        PART_STORE(to, x, n);
}

// e^x = 2^k e^f with integer k and |f| <= ln 2 / 2, where k is the nearest integer: adding 1.5 * 2^23 rounds to it.
// Both parts of e^x - 1 = (2^k - 1) + 2^k (e^f - 1) are returned, because accuracy near x = 0 needs them.
FUNCTION void NAME(power)(vector x, vector *two_to_k, vector *rest) {
    x = MOST(ALL(-80.0f), LEAST(ALL(80.0f), x));
    vector shifted = x * 1.44269504f + 12582912.0f;
    vector k = shifted - 12582912.0f;
    vector f = x - k * 0.693359375f; // ln 2 in two parts; the first has few digits
    f = f + k * 2.12194440e-4f;
    vector series = f * 1.3888889e-3f + 8.3333333e-3f; // Taylor series up to f^6 / 6!
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

// sums[4 i + v] += left[i, k] * right[k, v] over all k, for `rows` by `vectors` sums; both are constants at the call.
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

// fixed_tile for 1 or TALL rows and 1 to 4 vectors.
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

// fixed_tile for 1 to TALL rows and 1, 3 or 4 adjacent vectors.
FUNCTION void NAME(some_rows)(int rows, int vectors, vector *sums, const float *left, int64_t left_row, const float *right,
                              int64_t inner) {
#define CASE(r, v)                                                                                       \
    case 8 * r + v:                                                                                      \
        if (r <= TALL) NAME(fixed_tile)(r <= TALL ? r : 1, v, sums, left, left_row, 1, right, v * LANES, inner); \
        return
#define CASES(r) CASE(r, 1); CASE(r, 3); CASE(r, 4)
    switch (8 * rows + vectors) {
        CASES(1); CASES(2); CASES(3); CASES(4); CASES(5); CASES(6);
    }
#undef CASES
#undef CASE
}

// The same sums for one row and BESIDE panels that are `panel` floats apart.
FUNCTION __attribute__((always_inline)) void NAME(row)(int vectors, vector *sums, const float *left, const float *right,
                                                       int64_t panel, int64_t inner) {
    vector sum[BESIDE][4];
    UNROLL for (int p = 0; p < BESIDE; p++) UNROLL for (int v = 0; v < vectors; v++) sum[p][v] = sums[4 * p + v];
    for (int64_t k = 0; k < inner; k++)
        UNROLL for (int p = 0; p < BESIDE; p++) UNROLL for (int v = 0; v < vectors; v++)
            sum[p][v] += left[k] * AT(right + p * panel + (k * vectors + v) * LANES);
    UNROLL for (int p = 0; p < BESIDE; p++) UNROLL for (int v = 0; v < vectors; v++) sums[4 * p + v] = sum[p][v];
}

// out += left @ right. The right-hand side consists of panels of four vectors, or is a matrix whose panels are adjacent.
FUNCTION void NAME(multiply)(float *out, int64_t out_row, const float *left, int64_t left_row, int64_t left_k,
                             const float *right, int64_t right_k, int64_t right_panel, int64_t rows, int64_t inner,
                             int64_t columns) {
    for (int64_t column = 0; column < columns; column += PANEL, right += right_panel) {
        int vectors = columns - column < PANEL ? (int)((columns - column) / LANES) : 4;
        for (int64_t row = 0, high; row < rows; row += high) {
            high = rows - row >= TALL ? TALL : 1;
            vector sums[TALL * 4];
            float *corner = out + row * out_row + column;
            for (int i = 0; i < high; i++)
                for (int v = 0; v < vectors; v++) sums[4 * i + v] = AT(corner + i * out_row + v * LANES);
            NAME(tile)((int)high, vectors, sums, left + row * left_row, left_row, left_k, right, right_k, inner);
            for (int i = 0; i < high; i++)
                for (int v = 0; v < vectors; v++) AT(corner + i * out_row + v * LANES) = sums[4 * i + v];
        }
    }
}

// Copies columns of a row into row k of panels that are `right_panel` floats long; the remainder of the last vector is 0.
FUNCTION void NAME(into_panels)(float *panels, int64_t right_panel, int64_t k, const float *row, int64_t columns) {
    for (int64_t j = 0; j < columns; j += LANES)
        AT(panels + j / PANEL * right_panel + k * PANEL + j % PANEL) = NAME(load)(row + j, columns - j);
}
