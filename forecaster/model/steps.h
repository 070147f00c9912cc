// The arithmetic of steps.c for one width of vectors. Included once for each instruction set, with
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

// sums[i][v] += left[i, k] * right[k, v] over all k, for `rows` by `vectors` sums, both constants where it is called.
FUNCTION __attribute__((always_inline)) void NAME(fixed_tile)(
    int rows, int vectors, vector (*sums)[4], const float *left, int64_t left_row, int64_t left_k, const float *right,
    int64_t right_k, int64_t inner) {
    vector sum[TALL][4];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < vectors; v++) sum[i][v] = sums[i][v];
    for (int64_t k = 0; k < inner; k++) {
        vector weights[4];
        UNROLL for (int v = 0; v < vectors; v++) weights[v] = AT(right + k * right_k + v * LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            float x = left[i * left_row + k * left_k];
            UNROLL for (int v = 0; v < vectors; v++) sum[i][v] += x * weights[v];
        }
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int v = 0; v < vectors; v++) sums[i][v] = sum[i][v];
}

// The same for 1 or TALL rows and 1 to 4 vectors.
FUNCTION void NAME(tile)(int rows, int vectors, vector (*sums)[4], const float *left, int64_t left_row, int64_t left_k,
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
            vector sums[TALL][4];
            float *corner = out + row * out_row + column;
            for (int i = 0; i < high; i++)
                for (int v = 0; v < vectors; v++) sums[i][v] = AT(corner + i * out_row + v * LANES);
            NAME(tile)((int)high, vectors, sums, left + row * left_row, left_row, left_k, panel,
                       right_k ? right_k : vectors * LANES, inner);
            for (int i = 0; i < high; i++)
                for (int v = 0; v < vectors; v++) AT(corner + i * out_row + v * LANES) = sums[i][v];
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

// One unit block of one row takes its step. `sums`: i, f, g, o of an LSTM; q (the recurrent part of n), r, z, n of a GRU.
FUNCTION __attribute__((always_inline)) void NAME(settle)(
    const struct layer *l, int64_t place, int64_t unit, const vector *sums, const float *before, float *after, float *cell) {
    int64_t H = l->hidden, P = l->padded, n = H - unit;
    float *output = l->outputs + place * H + unit, *gates = l->gates ? l->gates + place * 4 * P + unit : NULL;
    if (!l->begun[place]) { // the state passes over padding
        AT(after) = AT(before);
        NAME(store)(output, ALL(0.0f), n);
        if (l->cells) AT(l->cells + place * P + unit) = AT(cell);
        return;
    }
    vector h;
    if (l->kind == LSTM) { // Graves 2013, (7) to (11)
        vector i = NAME(sigmoid)(sums[0]), f = NAME(sigmoid)(sums[1]);
        vector g = NAME(tanh)(sums[2]), o = NAME(sigmoid)(sums[3]);
        vector c = f * AT(cell) + i * g;
        h = o * NAME(tanh)(c);
        AT(cell) = c;
        if (gates) {
            AT(gates) = i, AT(gates + P) = f, AT(gates + 2 * P) = g, AT(gates + 3 * P) = o;
            AT(l->cells + place * P + unit) = c;
        }
    } else if (l->kind == GRU) { // Cho et al. 2014, (5) to (8), with the reset gate after the product
        vector r = NAME(sigmoid)(sums[1]), z = NAME(sigmoid)(sums[2]);
        vector n_ = NAME(tanh)(sums[3] + r * sums[0]);
        h = n_ + z * (AT(before) - n_);
        if (gates) AT(gates) = sums[0], AT(gates + P) = r, AT(gates + 2 * P) = z, AT(gates + 3 * P) = n_;
    } else
        h = NAME(tanh)(sums[0]);
    AT(after) = h;
    NAME(store)(output, h, n);
}

// sums[j] = bias[j] + input_weights[j] . x + recurrent_weights[j] . h, from the weights as they lie.
FUNCTION void NAME(dot_each)(float *sums, const float *bias, const float *x_weights, const float *x, int64_t X,
                             const float *h_weights, const float *h, int64_t H, int64_t count) {
    for (int64_t j = 0; j < count; j++) {
        vector sum = ALL(0.0f);
        for (int64_t k = 0; k < X; k += LANES) sum += NAME(load)(x_weights + j * X + k, X - k) * NAME(load)(x + k, X - k);
        for (int64_t k = 0; k < H; k += LANES) sum += NAME(load)(h_weights + j * H + k, H - k) * NAME(load)(h + k, H - k);
        float total = bias[j];
        UNROLL for (int lane = 0; lane < LANES; lane++) total += sum[lane];
        sums[j] = total;
    }
}

// Where the biases go: one row of padded units for each sum.
FUNCTION void NAME(spread_bias)(const struct layer *l, int64_t member, float *bias, int64_t sums) {
    int64_t H = l->hidden, P = l->padded, gates = l->kind == GRU ? 3 : sums;
    const float *input = l->input_bias + member * gates * H, *recurrent = l->recurrent_bias + member * gates * H;
    memset(bias, 0, sums * P * sizeof(float));
    for (int64_t j = 0; j < H; j++)
        if (l->kind == GRU) {
            bias[j] = recurrent[2 * H + j];
            bias[P + j] = input[j] + recurrent[j];
            bias[2 * P + j] = input[H + j] + recurrent[H + j];
            bias[3 * P + j] = input[2 * H + j];
        } else
            for (int64_t s = 0; s < sums; s++) bias[s * P + j] = input[s * H + j] + recurrent[s * H + j];
}

// The weights in the order in which tiles read them: unit block, then inner, then gate. A GRU's recurrent gates are n, r, z.
FUNCTION void NAME(interleave)(const struct layer *l, int64_t member, float *panels, int64_t gates) {
    int64_t H = l->hidden, X = l->features;
    const float *input = l->input_weights + member * gates * H * X;
    const float *recurrent = l->recurrent_weights + member * gates * H * H;
    for (int64_t unit = 0; unit < l->padded; unit += LANES)
        for (int part = 0; part < 2; part++) {
            const float *weights = part ? recurrent : input;
            int64_t inner = part ? H : X;
            for (int64_t g = 0; g < gates; g++) {
                int64_t gate = part && l->kind == GRU ? (g + 2) % 3 : g;
                for (int64_t j = 0; j < LANES; j++)
                    for (int64_t k = 0; k < inner; k++)
                        panels[(k * gates + g) * LANES + j] =
                            unit + j < H ? weights[(gate * H + unit + j) * inner + k] : 0.0f;
            }
            panels += inner * gates * LANES;
        }
}

// Rows `first` to `last` of one member take all their steps.
FUNCTION int NAME(forward)(const struct layer *l, int64_t member, int64_t first, int64_t last) {
    const int64_t H = l->hidden, P = l->padded, X = l->features, T = l->steps, rows = last - first;
    const int64_t gates = l->kind == LSTM ? 4 : l->kind == GRU ? 3 : 1, sums = l->kind == GRU ? 4 : gates;
    const int64_t wide = NAME(padded)(X) + P + LANES, inner = X + H; // of an input and a state, side by side
    const int64_t base = member * l->rows + first;
    const int few = rows * T < l->few; // not worth interleaving the weights for
    float *room = take(((few ? 0 : inner * gates * P) + 2 * sums * P + rows * (2 * wide + P)) * sizeof(float));
    if (!room) return 0;
    float *bias = room, *row_sums = bias + sums * P, *here = row_sums + sums * P, *there = here + rows * wide;
    float *cells = there + rows * wide, *panels = cells + rows * P;
    const float *input_weights = l->input_weights + member * gates * H * X;
    const float *recurrent_weights = l->recurrent_weights + member * gates * H * H;
    NAME(spread_bias)(l, member, bias, sums);
    if (!few) NAME(interleave)(l, member, panels, gates);
    memset(row_sums, 0, (sums * P + rows * (2 * wide + P)) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        memcpy(here + r * wide + X, l->hidden_before + (base + r) * H, H * sizeof(float));
        if (l->kind == LSTM) memcpy(cells + r * P, l->cell_before + (base + r) * H, H * sizeof(float));
    }
    for (int64_t t = 0; t < T; t++) {
        for (int64_t r = 0; r < rows; r++)
            memcpy(here + r * wide, l->inputs + ((base + r) * T + t) * X, X * sizeof(float));
        for (int64_t r = 0; few && r < rows; r++) {
            const float *x = here + r * wide, *h = x + X;
            int64_t both = l->kind == GRU ? 2 : gates, at = l->kind == GRU ? P : 0;
            for (int64_t g = 0; g < both; g++)
                NAME(dot_each)(row_sums + at + g * P, bias + at + g * P, input_weights + g * H * X, x, X,
                               recurrent_weights + g * H * H, h, H, H);
            if (l->kind == GRU) {
                NAME(dot_each)(row_sums, bias, NULL, NULL, 0, recurrent_weights + 2 * H * H, h, H, H);
                NAME(dot_each)(row_sums + 3 * P, bias + 3 * P, input_weights + 2 * H * X, x, X, NULL, NULL, 0, H);
            }
            for (int64_t unit = 0; unit < P; unit += LANES) {
                vector sum[4];
                for (int64_t s = 0; s < sums; s++) sum[s] = AT(row_sums + s * P + unit);
                NAME(settle)(l, (base + r) * T + t, unit, sum, h + unit, there + r * wide + X + unit,
                             cells + r * P + unit);
            }
        }
        for (int64_t unit = 0; !few && unit < P; unit += LANES) {
            const float *panel = panels + unit * inner * gates;
            for (int64_t row = 0, high; row < rows; row += high) {
                high = rows - row >= TALL ? TALL : 1;
                vector sum[TALL][4];
                for (int i = 0; i < high; i++)
                    for (int64_t s = 0; s < sums; s++) sum[i][s] = AT(bias + s * P + unit);
                const float *x = here + row * wide;
                if (l->kind == GRU) {
                    NAME(tile)((int)high, 3, (vector(*)[4])&sum[0][1], x, wide, 1, panel, 3 * LANES, X);
                    NAME(tile)((int)high, 3, sum, x + X, wide, 1, panel + X * 3 * LANES, 3 * LANES, H);
                } else
                    NAME(tile)((int)high, (int)gates, sum, x, wide, 1, panel, gates * LANES, inner);
                for (int i = 0; i < high; i++)
                    NAME(settle)(l, (base + row + i) * T + t, unit, sum[i], x + i * wide + X + unit,
                                 there + (row + i) * wide + X + unit, cells + (row + i) * P + unit);
            }
        }
        float *swap = here;
        here = there;
        there = swap;
    }
    for (int64_t r = 0; r < rows; r++) {
        memcpy(l->hidden_after + (base + r) * H, here + r * wide + X, H * sizeof(float));
        if (l->kind == LSTM) memcpy(l->cell_after + (base + r) * H, cells + r * P, H * sizeof(float));
    }
    free(room);
    return 1;
}

// The slopes of the loss by the sums of one step of one row, given `slope` by its hidden state; see `settle` for their order.
FUNCTION void NAME(unsettle)(const struct layer *l, int64_t row, int64_t t, const float *before, const float *slope,
                             float *d_sums, float *d_before, float *d_cell) {
    const int64_t H = l->hidden, P = l->padded, place = row * l->steps + t;
    const float *gates = l->gates ? l->gates + place * 4 * P : NULL;
    for (int64_t unit = 0; unit < H; unit += LANES) {
        int64_t n = H - unit;
        vector d = AT(slope + unit) + NAME(load)(l->d_outputs + place * H + unit, n);
        vector d_h = ALL(0.0f); // by the state before, past the sums
        if (l->kind == LSTM) {
            vector i = AT(gates + unit), f = AT(gates + P + unit), g = AT(gates + 2 * P + unit), o = AT(gates + 3 * P + unit);
            vector y = NAME(tanh)(AT(l->cells + place * P + unit));
            vector c = t ? (vector)AT(l->cells + (place - 1) * P + unit) : NAME(load)(l->cell_before + row * H + unit, n);
            vector d_c = AT(d_cell + unit) + d * o * (1.0f - y * y);
            NAME(store)(d_sums + unit, d_c * g * i * (1.0f - i), n);
            NAME(store)(d_sums + H + unit, d_c * c * f * (1.0f - f), n);
            NAME(store)(d_sums + 2 * H + unit, d_c * i * (1.0f - g * g), n);
            NAME(store)(d_sums + 3 * H + unit, d * y * o * (1.0f - o), n);
            AT(d_cell + unit) = d_c * f;
        } else if (l->kind == GRU) {
            vector q = AT(gates + unit), r = AT(gates + P + unit), z = AT(gates + 2 * P + unit), n_ = AT(gates + 3 * P + unit);
            vector d_n = d * (1.0f - z) * (1.0f - n_ * n_);
            NAME(store)(d_sums + unit, d_n * r, n);
            NAME(store)(d_sums + H + unit, d_n * q * r * (1.0f - r), n);
            NAME(store)(d_sums + 2 * H + unit, d * (AT(before + unit) - n_) * z * (1.0f - z), n);
            NAME(store)(d_sums + 3 * H + unit, d_n, n);
            d_h = d * z;
        } else {
            vector h = NAME(load)(l->outputs + place * H + unit, n);
            NAME(store)(d_sums + unit, d * (1.0f - h * h), n);
        }
        AT(d_before + unit) = d_h;
    }
}

// Rows `first` to `last` of one member, all their steps in reverse. The slopes by the weights are those of these rows: `piece`.
FUNCTION int NAME(backward)(const struct layer *l, int64_t member, int64_t piece, int64_t first, int64_t last) {
    const int64_t H = l->hidden, P = l->padded, X = l->features, XP = NAME(padded)(X), T = l->steps, rows = last - first;
    const int64_t gates = l->kind == LSTM ? 4 : l->kind == GRU ? 3 : 1, sums = l->kind == GRU ? 4 : gates;
    const int64_t turn = l->kind == GRU ? 2 * H : 0; // sums are q, r, z, n: recurrent weights in the order n, r, z
    const int64_t own = sums * H - gates * H;        // and those of the input begin at r
    const int64_t base = member * l->rows + first, GP = NAME(padded)(gates * H);
    const int narrow = X < LANES;
    const int64_t weights = GP * (P + XP);
    int64_t held = rows && rows < 128 ? 128 / rows : 1; // steps held until weights learn from them, many rows at once
    if (held > T) held = T;
    float *room = take((2 * weights + held * rows * (sums * H + P + XP) + rows * (3 * P + XP) + sums * H) * sizeof(float));
    if (!room) return 0;
    memset(room, 0, (2 * weights + held * rows * (sums * H + P + XP) + rows * (3 * P + XP) + sums * H) * sizeof(float));
    float *recurrent = room, *input = recurrent + GP * P;
    float *d_recurrent = input + GP * XP, *d_input = d_recurrent + GP * P;
    float *d_sums = d_input + GP * XP, *before = d_sums + held * rows * sums * H, *x = before + held * rows * P;
    float *d_hidden = x + held * rows * XP, *d_before = d_hidden + rows * P, *d_cell = d_before + rows * P;
    float *d_x = d_cell + rows * P, *d_bias = d_x + rows * XP;
    NAME(into_panels)(recurrent, l->recurrent_weights + member * gates * H * H, gates * H, H, turn);
    if (l->d_inputs) NAME(into_panels)(input, l->input_weights + member * gates * H * X, gates * H, X, 0);
    for (int64_t r = 0; r < rows; r++) {
        if (l->d_hidden_after) memcpy(d_hidden + r * P, l->d_hidden_after + (base + r) * H, H * sizeof(float));
        if (l->d_cell_after) memcpy(d_cell + r * P, l->d_cell_after + (base + r) * H, H * sizeof(float));
    }
    for (int64_t t = T - 1, slot = 0; t >= 0; t--) {
        float *d_now = d_sums + slot * rows * sums * H;
        for (int64_t r = 0; r < rows; r++) {
            int64_t row = base + r, place = row * T + t;
            float *h_r = before + (slot * rows + r) * P, *x_r = x + (slot * rows + r) * XP, *d_r = d_now + r * sums * H;
            if (l->begun[place]) {
                int from_start = !t || !l->begun[place - 1];
                const float *h = from_start ? l->hidden_before + row * H : l->outputs + (place - 1) * H;
                memcpy(h_r, h, H * sizeof(float));
                memcpy(x_r, l->inputs + place * X, X * sizeof(float));
                NAME(unsettle)(l, row, t, h_r, d_hidden + r * P, d_r, d_before + r * P, d_cell + r * P);
            } else { // nothing is learned from padding
                memset(h_r, 0, P * sizeof(float));
                memset(x_r, 0, XP * sizeof(float));
                memset(d_r, 0, sums * H * sizeof(float));
                memcpy(d_before + r * P, d_hidden + r * P, P * sizeof(float));
            }
            for (int64_t j = 0; j < sums * H; j++) d_bias[j] += d_r[j];
        }
        NAME(multiply)(d_before, P, d_now, sums * H, 1, recurrent, 0, rows, gates * H, P);
        if (l->d_inputs) {
            memset(d_x, 0, rows * XP * sizeof(float));
            NAME(multiply)(d_x, XP, d_now + own, sums * H, 1, input, 0, rows, gates * H, XP);
            for (int64_t r = 0; r < rows; r++)
                memcpy(l->d_inputs + ((base + r) * T + t) * X, d_x + r * XP, X * sizeof(float));
        }
        if (++slot == held || !t) {
            NAME(multiply)(d_recurrent, P, d_sums, 1, sums * H, before, P, gates * H, slot * rows, P);
            if (narrow)
                NAME(multiply)(d_input, GP, x, 1, XP, d_sums + own, sums * H, X, slot * rows, GP);
            else
                NAME(multiply)(d_input, XP, d_sums + own, 1, sums * H, x, XP, gates * H, slot * rows, XP);
            slot = 0;
        }
        float *swap = d_hidden;
        d_hidden = d_before;
        d_before = swap;
    }
    int64_t share = member * l->pieces + piece;
    for (int64_t j = 0; j < gates * H; j++) {
        float *to = l->d_recurrent_weights + (share * gates * H + (j + turn) % (gates * H)) * H;
        memcpy(to, d_recurrent + j * P, H * sizeof(float));
        float *to_input = l->d_input_weights + (share * gates * H + j) * X;
        for (int64_t k = 0; k < X; k++) to_input[k] = narrow ? d_input[k * GP + j] : d_input[j * XP + k];
    }
    memcpy(l->d_bias + share * sums * H, d_bias, sums * H * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        memcpy(l->d_hidden_before + (base + r) * H, d_hidden + r * P, H * sizeof(float));
        if (l->kind == LSTM) memcpy(l->d_cell_before + (base + r) * H, d_cell + r * P, H * sizeof(float));
    }
    free(room);
    return 1;
}

#undef vector
#undef AT
#undef ALL
#undef UNROLL
#undef LANES
#undef TALL
#undef FUNCTION
#undef NAME
#undef LEAST
#undef MOST
#undef PART_LOAD
#undef PART_STORE
