// Forward and backward pass of one layer for one vector width. Included after tiles.h.

// Returns the new state of one unit block. `sums` are preactivations: i, f, g, o for an LSTM; q (recurrent part of n), r, z, n
// for a GRU. They are replaced by the gates.
FUNCTION __attribute__((always_inline)) vector NAME(update)(int64_t kind, vector *sums, vector before, vector *cell) {
    if (kind == LSTM) { // Graves 2013, (7) to (11)
        sums[0] = NAME(sigmoid)(sums[0]), sums[1] = NAME(sigmoid)(sums[1]);
        sums[2] = NAME(tanh)(sums[2]), sums[3] = NAME(sigmoid)(sums[3]);
        *cell = sums[1] * *cell + sums[0] * sums[2];
        return sums[3] * NAME(tanh)(*cell);
    }
    if (kind == GRU) { // Cho et al. 2014, (5) to (8), with the reset gate after the product
        sums[1] = NAME(sigmoid)(sums[1]), sums[2] = NAME(sigmoid)(sums[2]);
        sums[3] = NAME(tanh)(sums[3] + sums[1] * sums[0]);
        return sums[3] + sums[2] * (before - sums[3]);
    }
    return NAME(tanh)(sums[0]);
}

// Index of a step of a row in `gates` and `cells`, ordered by member, step and row, as the rows of a step are read together.
FUNCTION int64_t NAME(saved)(const struct layer *l, int64_t row, int64_t t) {
    return row + row / l->rows * l->rows * (l->steps - 1) + t * l->rows;
}

// One unit block of one row takes a step.
FUNCTION __attribute__((always_inline)) void NAME(settle)(const struct layer *l, int64_t place, int64_t saved, int64_t unit,
                                                          const vector *sums, const float *before, float *after, float *cell) {
    int64_t H = l->hidden, P = l->padded, n = H - unit;
    float *output = l->outputs + place * H + unit, *kept = l->gates ? l->gates + saved * 4 * P + unit : NULL;
    if (!l->begun[place]) { // padding leaves the state unchanged
        AT(after) = AT(before);
        NAME(store)(output, ALL(0.0f), n);
        if (l->cells) AT(l->cells + saved * P + unit) = AT(cell);
        return;
    }
    vector gates[4] = {sums[0], sums[1], sums[2], sums[3]}, c = AT(cell);
    vector h = NAME(update)(l->kind, gates, AT(before), &c);
    if (l->kind == LSTM) AT(cell) = c;
    if (kept) // an Elman cell saves no gates
        for (int g = 0; g < 4; g++) AT(kept + g * P) = gates[g];
    if (l->cells) AT(l->cells + saved * P + unit) = c;
    AT(after) = h;
    NAME(store)(output, h, n);
}

// What a member's rows need in the forward pass, and working memory of one band of them.
struct NAME(way) {
    const struct layer *l;
    const float *input_weights, *recurrent_weights;
    int64_t gates, sums, wide; // floats per row: its input directly followed by its state
    float *bias, *panels;      // one row of units per sum; weights in tile order, or NULL
    float *here, *there;       // the band's inputs and states, before and after a step
    float *cells, *one;        // of the band; one row's preactivations
};

// Fills the biases: one row of padded units per sum.
FUNCTION void NAME(spread_bias)(const struct NAME(way) *w, int64_t member) {
    int64_t H = w->l->hidden, P = w->l->padded;
    const float *input = w->l->input_bias + member * w->gates * H;
    const float *recurrent = w->l->recurrent_bias + member * w->gates * H;
    memset(w->bias, 0, w->sums * P * sizeof(float));
    for (int64_t j = 0; j < H; j++)
        if (w->l->kind == GRU) {
            w->bias[j] = recurrent[2 * H + j];
            w->bias[P + j] = input[j] + recurrent[j];
            w->bias[2 * P + j] = input[H + j] + recurrent[H + j];
            w->bias[3 * P + j] = input[2 * H + j];
        } else
            for (int64_t s = 0; s < w->sums; s++) w->bias[s * P + j] = input[s * H + j] + recurrent[s * H + j];
}

// Reorders the weights as tiles read them: unit block, inner dimension, gate. A GRU's recurrent gates are n, r, z.
FUNCTION void NAME(interleave)(const struct NAME(way) *w) {
    int64_t H = w->l->hidden, gates = w->gates;
    float *panels = w->panels;
    for (int64_t unit = 0; unit < w->l->padded; unit += LANES)
        for (int part = 0; part < 2; part++) {
            const float *weights = part ? w->recurrent_weights : w->input_weights;
            int64_t inner = part ? H : w->l->features;
            for (int64_t g = 0; g < gates; g++) {
                int64_t gate = part && w->l->kind == GRU ? (g + 2) % 3 : g;
                for (int64_t j = 0; j < LANES; j++)
                    for (int64_t k = 0; k < inner; k++)
                        panels[(k * gates + g) * LANES + j] =
                            unit + j < H ? weights[(gate * H + unit + j) * inner + k] : 0.0f;
            }
            panels += inner * gates * LANES;
        }
}

// sums[j] = bias[j] + x_weights[j] . x + h_weights[j] . h, without packing the weights.
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

// One step of so few rows that packing the weights does not pay off.
FUNCTION void NAME(step_few)(const struct NAME(way) *w, int64_t base, int64_t rows, int64_t t) {
    const int64_t H = w->l->hidden, P = w->l->padded, X = w->l->features, saved = NAME(saved)(w->l, base, t);
    for (int64_t r = 0; r < rows; r++) {
        const float *x = w->here + r * w->wide, *h = x + X;
        for (int64_t s = 0; s < w->sums; s++) { // a GRU's are q, r, z, n: q has no input part, n no recurrent part
            int gru = w->l->kind == GRU, q = gru && s == 0, n = gru && s == 3;
            int64_t x_gate = gru ? s - 1 : s, h_gate = q ? 2 : x_gate;
            NAME(dot_each)(w->one + s * P, w->bias + s * P, q ? NULL : w->input_weights + x_gate * H * X, x, q ? 0 : X,
                           n ? NULL : w->recurrent_weights + h_gate * H * H, h, n ? 0 : H, H);
        }
        for (int64_t unit = 0; unit < P; unit += LANES) {
            vector sums[4];
            for (int64_t s = 0; s < w->sums; s++) sums[s] = AT(w->one + s * P + unit);
            NAME(settle)(w->l, (base + r) * w->l->steps + t, saved + r, unit, sums, h + unit, w->there + r * w->wide + X + unit,
                         w->cells + r * P + unit);
        }
    }
}

// One step of a band, tile by tile.
FUNCTION void NAME(step_band)(const struct NAME(way) *w, int64_t base, int64_t rows, int64_t t) {
    const int64_t H = w->l->hidden, P = w->l->padded, X = w->l->features, wide = w->wide, gates = w->gates;
    const int64_t saved = NAME(saved)(w->l, base, t);
    for (int64_t unit = 0; unit < P; unit += LANES) {
        const float *panel = w->panels + unit * (X + H) * gates;
        for (int64_t row = 0, high; row < rows; row += high) {
            high = rows - row >= TALL ? TALL : 1;
            vector sums[TALL * 4];
            for (int i = 0; i < high; i++)
                for (int64_t s = 0; s < w->sums; s++) sums[4 * i + s] = AT(w->bias + s * P + unit);
            const float *x = w->here + row * wide;
            if (w->l->kind == GRU) {
                NAME(tile)((int)high, 3, sums + 1, x, wide, 1, panel, 3 * LANES, X);
                NAME(tile)((int)high, 3, sums, x + X, wide, 1, panel + X * 3 * LANES, 3 * LANES, H);
            } else
                NAME(tile)((int)high, (int)gates, sums, x, wide, 1, panel, gates * LANES, X + H);
            for (int i = 0; i < high; i++)
                NAME(settle)(w->l, (base + row + i) * w->l->steps + t, saved + row + i, unit, sums + 4 * i,
                             x + i * wide + X + unit, w->there + (row + i) * wide + X + unit, w->cells + (row + i) * P + unit);
        }
    }
}

// A band of rows takes all its steps.
FUNCTION void NAME(walk)(struct NAME(way) *w, int64_t base, int64_t rows) {
    const struct layer *l = w->l;
    const int64_t H = l->hidden, P = l->padded, X = l->features, T = l->steps, wide = w->wide;
    for (int64_t r = 0; r < rows; r++) {
        memcpy(w->here + r * wide + X, l->hidden_before + (base + r) * H, H * sizeof(float));
        if (l->kind == LSTM) memcpy(w->cells + r * P, l->cell_before + (base + r) * H, H * sizeof(float));
    }
    for (int64_t t = 0; t < T; t++) {
        for (int64_t r = 0; r < rows; r++)
            memcpy(w->here + r * wide, l->inputs + ((base + r) * T + t) * X, X * sizeof(float));
        if (w->panels)
            NAME(step_band)(w, base, rows, t);
        else
            NAME(step_few)(w, base, rows, t);
        float *swap = w->here;
        w->here = w->there;
        w->there = swap;
    }
    for (int64_t r = 0; r < rows; r++) {
        memcpy(l->hidden_after + (base + r) * H, w->here + r * wide + X, H * sizeof(float));
        if (l->kind == LSTM) memcpy(l->cell_after + (base + r) * H, w->cells + r * P, H * sizeof(float));
    }
}

// Forward pass of rows `first` to `last` of one member.
FUNCTION int NAME(forward)(const struct layer *l, int64_t member, int64_t first, int64_t last) {
    const int64_t H = l->hidden, P = l->padded, X = l->features, band = band_of(last - first);
    const int64_t gates = gates_of(l), sums = sums_of(l), wide = NAME(padded)(X) + P + LANES;
    const int few = (last - first) * l->steps < l->few;
    const int64_t clean = 2 * sums * P + band * (2 * wide + P);
    float *room = take((clean + (few ? 0 : (X + H) * gates * P)) * sizeof(float));
    if (!room) return 0;
    memset(room, 0, clean * sizeof(float));
    struct NAME(way) way = {.l = l, .gates = gates, .sums = sums, .wide = wide, .bias = room, .one = room + sums * P};
    way.input_weights = l->input_weights + member * gates * H * X;
    way.recurrent_weights = l->recurrent_weights + member * gates * H * H;
    way.here = way.one + sums * P;
    way.there = way.here + band * wide;
    way.cells = way.there + band * wide;
    way.panels = few ? NULL : way.cells + band * P;
    NAME(spread_bias)(&way, member);
    if (!few) NAME(interleave)(&way);
    for (int64_t row = first; row < last; row += band)
        NAME(walk)(&way, member * l->rows + row, last - row < band ? last - row : band);
    free(room);
    return 1;
}

// Computes the gradients of the preactivations of one step of one row, given `slope`, the gradient of its hidden state. The
// order is that of `settle`.
FUNCTION void NAME(unsettle)(const struct layer *l, int64_t row, int64_t t, const float *before, const float *slope,
                             float *d_sums, float *d_before, float *d_cell) {
    const int64_t H = l->hidden, P = l->padded, place = row * l->steps + t, saved = NAME(saved)(l, row, t);
    const float *gates = l->gates ? l->gates + saved * 4 * P : NULL;
    for (int64_t unit = 0; unit < H; unit += LANES) {
        int64_t n = H - unit;
        vector d = AT(slope + unit) + NAME(load)(l->d_outputs + place * H + unit, n);
        vector d_h = ALL(0.0f); // gradient of the previous state that bypasses the preactivations
        if (l->kind == LSTM) {
            vector i = AT(gates + unit), f = AT(gates + P + unit), g = AT(gates + 2 * P + unit), o = AT(gates + 3 * P + unit);
            vector y = NAME(tanh)(AT(l->cells + saved * P + unit));
            vector c = t ? (vector)AT(l->cells + (saved - l->rows) * P + unit) : NAME(load)(l->cell_before + row * H + unit, n);
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
            NAME(store)(d_sums + 2 * H + unit, d * (NAME(load)(before + unit, n) - n_) * z * (1.0f - z), n);
            NAME(store)(d_sums + 3 * H + unit, d_n, n);
            d_h = d * z;
        } else {
            vector h = NAME(load)(l->outputs + place * H + unit, n);
            NAME(store)(d_sums + unit, d * (1.0f - h * h), n);
        }
        AT(d_before + unit) = d_h;
    }
}

// What a member's rows need in the backward pass, and working memory of one band of them. A GRU's sums are q, r, z, n: the
// recurrent weights are taken in the order n, r, z, which matches the first three; the input weights match the last three.
struct NAME(back) {
    const struct layer *l;
    int64_t gates, sums, own;          // offset of the sums that the input enters
    int64_t held, panel;               // steps collected for one update of the weight gradients; floats of a panel of them
    int64_t narrow, lying;             // whether d_input is transposed, and its width then
    float *recurrent, *input;          // panels
    float *d_recurrent, *d_input;      // accumulated weight gradients
    float *d_sums, *before, *x;        // of the collected steps: gradients; panels of previous states and of inputs
    float *d_hidden, *d_past, *d_cell; // gradients of the state after a step and before it
    float *d_x, *d_bias;
    const float *nothing; // zeros
};

// Adds the collected steps to the weight gradients.
FUNCTION void NAME(learn)(const struct NAME(back) *b, int64_t rows) {
    const int64_t H = b->l->hidden, P = b->l->padded, XP = NAME(padded)(b->l->features), G = b->gates * H, D = b->sums * H;
    const float *d_read = b->d_sums + b->own;
    NAME(multiply)(b->d_recurrent, P, b->d_sums, 1, D, b->before, PANEL, b->panel, G, rows, P);
    if (b->narrow)
        NAME(multiply)(b->d_input, b->lying, b->x, 1, PANEL, d_read, D, PANEL, b->l->features, rows, b->lying);
    else
        NAME(multiply)(b->d_input, XP, d_read, 1, D, b->x, PANEL, b->panel, G, rows, XP);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t j = 0; j < D; j++) b->d_bias[j] += b->d_sums[r * D + j];
}

// One step of a band: stores the gradients of its preactivations and the values they multiply in the slot of the step.
FUNCTION void NAME(gather)(const struct NAME(back) *b, int64_t base, int64_t rows, int64_t t, int64_t slot) {
    const struct layer *l = b->l;
    const int64_t H = l->hidden, P = l->padded, X = l->features, D = b->sums * H;
    for (int64_t r = 0; r < rows; r++) {
        int64_t row = base + r, place = row * l->steps + t, at = slot * rows + r;
        float *d_sums = b->d_sums + at * D;
        if (l->begun[place]) {
            int starts = !t || !l->begun[place - 1];
            const float *h = starts ? l->hidden_before + row * H : l->outputs + (place - 1) * H;
            NAME(into_panels)(b->before, b->panel, at, h, H);
            NAME(into_panels)(b->x, b->panel, at, l->inputs + place * X, X);
            NAME(unsettle)(l, row, t, h, b->d_hidden + r * P, d_sums, b->d_past + r * P, b->d_cell + r * P);
        } else { // padding contributes nothing to the weight gradients
            memset(d_sums, 0, D * sizeof(float));
            NAME(into_panels)(b->before, b->panel, at, b->nothing, H);
            NAME(into_panels)(b->x, b->panel, at, b->nothing, X);
            memcpy(b->d_past + r * P, b->d_hidden + r * P, P * sizeof(float));
        }
    }
}

// A band of rows takes all its steps in reverse.
FUNCTION void NAME(walk_back)(struct NAME(back) *b, int64_t base, int64_t rows) {
    const struct layer *l = b->l;
    const int64_t H = l->hidden, P = l->padded, X = l->features, XP = NAME(padded)(X), T = l->steps;
    const int64_t G = b->gates * H, D = b->sums * H;
    memset(b->d_hidden, 0, rows * P * sizeof(float));
    memset(b->d_cell, 0, rows * P * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
        if (l->d_hidden_after) memcpy(b->d_hidden + r * P, l->d_hidden_after + (base + r) * H, H * sizeof(float));
        if (l->d_cell_after) memcpy(b->d_cell + r * P, l->d_cell_after + (base + r) * H, H * sizeof(float));
    }
    for (int64_t t = T - 1, slot = 0; t >= 0; t--) {
        const float *d_sums = b->d_sums + slot * rows * D;
        NAME(gather)(b, base, rows, t, slot);
        NAME(multiply)(b->d_past, P, d_sums, D, 1, b->recurrent, PANEL, G * PANEL, rows, G, P);
        if (l->d_inputs) {
            memset(b->d_x, 0, rows * XP * sizeof(float));
            NAME(multiply)(b->d_x, XP, d_sums + b->own, D, 1, b->input, PANEL, G * PANEL, rows, G, XP);
            for (int64_t r = 0; r < rows; r++)
                memcpy(l->d_inputs + ((base + r) * T + t) * X, b->d_x + r * XP, X * sizeof(float));
        }
        if (++slot == b->held || !t) {
            NAME(learn)(b, slot * rows);
            slot = 0;
        }
        float *swap = b->d_hidden;
        b->d_hidden = b->d_past;
        b->d_past = swap;
    }
    for (int64_t r = 0; r < rows; r++) {
        memcpy(l->d_hidden_before + (base + r) * H, b->d_hidden + r * P, H * sizeof(float));
        if (l->kind == LSTM) memcpy(l->d_cell_before + (base + r) * H, b->d_cell + r * P, H * sizeof(float));
    }
}

// Backward pass of rows `first` to `last` of one member; their weight gradients form one piece.
FUNCTION int NAME(backward)(const struct layer *l, int64_t member, int64_t piece, int64_t first, int64_t last) {
    const int64_t H = l->hidden, P = l->padded, X = l->features, XP = NAME(padded)(X), band = band_of(last - first);
    const int64_t gates = gates_of(l), sums = sums_of(l), G = gates * H, D = sums * H, GP = NAME(padded)(G);
    const int64_t turn = l->kind == GRU ? 2 * H : 0, h_panels = (H + PANEL - 1) / PANEL, x_panels = (X + PANEL - 1) / PANEL;
    const int64_t widest = H > X ? P : XP;
    int64_t held = band < 128 ? 128 / band : 1;
    if (held > l->steps) held = l->steps;
    struct NAME(back) back = {.l = l, .gates = gates, .sums = sums, .own = D - G, .held = held, .panel = held * band * PANEL,
                              .narrow = X < LANES, .lying = GP};
    // A narrow product reads up to one vector past the last gradients. That memory is allocated, and its results are ignored.
    float **parts[] = {&back.recurrent, &back.input, &back.d_recurrent, &back.d_input, &back.d_sums, &back.before, &back.x,
                       &back.d_hidden, &back.d_past, &back.d_cell, &back.d_x, &back.d_bias, (float **)&back.nothing};
    int64_t sizes[] = {h_panels * G * PANEL, x_panels * G * PANEL, GP * P, GP * XP, held * band * D, h_panels * back.panel,
                       x_panels * back.panel, band * P, band * P, band * P, band * XP, D, widest};
    int64_t size = 0;
    for (int part = 0; part < 13; part++) size += sizes[part] = NAME(padded)(sizes[part]);
    float *room = take(size * sizeof(float)), *next = room;
    if (!room) return 0;
    memset(room, 0, size * sizeof(float));
    for (int part = 0; part < 13; next += sizes[part++]) *parts[part] = next;
    for (int64_t j = 0; j < G; j++) {
        NAME(into_panels)(back.recurrent, G * PANEL, j, l->recurrent_weights + (member * G + (j + turn) % G) * H, H);
        if (l->d_inputs) NAME(into_panels)(back.input, G * PANEL, j, l->input_weights + (member * G + j) * X, X);
    }
    for (int64_t row = first; row < last; row += band)
        NAME(walk_back)(&back, member * l->rows + row, last - row < band ? last - row : band);
    const int64_t share = member * l->pieces + piece;
    for (int64_t j = 0; j < G; j++) {
        float *input = l->d_input_weights + (share * G + j) * X;
        memcpy(l->d_recurrent_weights + (share * G + (j + turn) % G) * H, back.d_recurrent + j * P, H * sizeof(float));
        for (int64_t k = 0; k < X; k++) input[k] = back.narrow ? back.d_input[k * GP + j] : back.d_input[j * XP + k];
    }
    memcpy(l->d_bias + share * D, back.d_bias, D * sizeof(float));
    free(room);
    return 1;
}
