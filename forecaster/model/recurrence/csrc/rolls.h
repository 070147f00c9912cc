// Rollout of a stack of layers: over observed values, then over its own forecasts. Included after steps.h, once per vector width.

// Working memory of one band of rows. In a row, the input of each layer is directly followed by the layer's state.
struct NAME(band) {
    const struct rollout *o;
    int64_t at[MOST_LAYERS + 1], wide; // offset of each layer in a row; floats per row
    int64_t panels[MOST_LAYERS];                    // offset of each layer's weights
    float *here, *there;                            // rows before and after a step
    float *cells;                                   // row, layer, unit
    float *bound;                                   // divergence bound of each row
    uint8_t *begun, *gone;                          // per row: has been observed; has diverged
    float *said, *sums_of_inputs;                   // of one row, for ALONE steps: outputs; input parts of the preactivations
    int64_t widest;                                 // floats of one step of `said`
    uint8_t began[ALONE];                           // `begun` at each of these steps
};

FUNCTION int64_t NAME(features)(const struct rollout *o, int64_t layer) { return layer ? o->hidden : o->features; }

// Returns the floats of a layer's biases and weights in the order in which tiles read them.
FUNCTION int64_t NAME(packed)(const struct rollout *o, int64_t layer) {
    struct layer l = {.kind = o->kind};
    return (sums_of(&l) + gates_of(&l) * (NAME(features)(o, layer) + o->hidden)) * o->padded;
}

FUNCTION void NAME(pack)(const struct layer *l, float *packed) {
    struct NAME(way) way = {.l = l, .gates = gates_of(l), .sums = sums_of(l), .bias = packed};
    way.input_weights = l->input_weights;
    way.recurrent_weights = l->recurrent_weights;
    way.panels = packed + way.sums * l->padded;
    NAME(spread_bias)(&way, 0);
    NAME(interleave)(&way);
}

// Updates one unit block of a row from its preactivations: its state, and the input of the layer above, if there is one. A
// residual layer adds its own input `added` there.
FUNCTION __attribute__((always_inline)) void NAME(take)(int64_t kind, int begun, vector *sums, const float *before, float *after,
                                                        float *cell, float *above, int64_t n, const float *added) {
    vector h = AT(before), c = AT(cell);
    if (begun) {
        h = NAME(update)(kind, sums, h, &c);
        AT(cell) = c;
    }
    AT(after) = h;
    if (above) NAME(store)(above, added ? h + NAME(load)(added, n) : h, n);
}

// One step of one layer. Every sum adds its products in the same order, whatever rows are computed with it.
FUNCTION __attribute__((always_inline)) void NAME(step_kind)(const struct NAME(band) *b, int64_t kind, int64_t layer,
                                                             int64_t rows) {
    const struct rollout *o = b->o;
    const int64_t H = o->hidden, P = o->padded, X = NAME(features)(o, layer), wide = b->wide;
    const int gates = kind == LSTM ? 4 : kind == GRU ? 3 : 1, sums_ = kind == ELMAN ? 1 : 4;
    const float *bias = o->packed + b->panels[layer], *panels = bias + sums_ * P, *inputs = b->here + b->at[layer];
    const int64_t panel = (X + H) * gates * LANES; // floats per unit block
    float *before = b->here + b->at[layer] + X, *after = b->there + b->at[layer] + X, *cells = b->cells + layer * P;
    float *above = layer + 1 < o->layers || o->outputs ? b->here + b->at[layer + 1] : NULL;
    const float *added = layer < o->residual ? NULL : inputs;
#define TAKE(r, u, s)                                                                                                  \
    NAME(take)(kind, b->begun[r], s, before + (r) * wide + (u), after + (r) * wide + (u), cells + (r) * o->layers * P + (u), \
               above ? above + (r) * wide + (u) : NULL, H - (u), added ? added + (r) * wide + (u) : NULL)
    for (int64_t unit = 0, many; unit < P; unit += many * LANES) {
        // A single row sums several vectors at once: its sums would otherwise wait for each other.
        many = rows == 1 && P - unit >= BESIDE * LANES ? BESIDE : 1;
        const float *weights = panels + unit / LANES * panel;
        for (int64_t row = 0, high; row < rows; row += high) {
            high = rows - row >= TALL ? TALL : rows - row;
            const float *x = inputs + row * wide;
            vector sums[(TALL > BESIDE ? TALL : BESIDE) * 4];
            if (many > 1) {
                for (int i = 0; i < BESIDE; i++)
                    for (int s = 0; s < sums_; s++) sums[4 * i + s] = AT(bias + s * P + unit + i * LANES);
                if (kind == GRU) {
                    NAME(row)(3, sums + 1, x, weights, panel, X);
                    NAME(row)(3, sums, x + X, weights + X * 3 * LANES, panel, H);
                } else
                    NAME(row)(gates, sums, x, weights, panel, X + H);
                for (int i = 0; i < BESIDE; i++) TAKE(row, unit + i * LANES, sums + 4 * i);
                continue;
            }
            for (int i = 0; i < high; i++)
                for (int s = 0; s < sums_; s++) sums[4 * i + s] = AT(bias + s * P + unit);
            if (kind == GRU) {
                NAME(some_rows)((int)high, 3, sums + 1, x, wide, weights, X);
                NAME(some_rows)((int)high, 3, sums, x + X, wide, weights + X * 3 * LANES, H);
            } else
                NAME(some_rows)((int)high, gates, sums, x, wide, weights, X + H);
            for (int i = 0; i < high; i++) TAKE(row + i, unit, sums + 4 * i);
        }
    }
}

#undef TAKE

// One layer takes several steps of a single row. The outputs of the layer below are complete, so the weights are loaded only once
// for TALL steps; `said` is replaced by the outputs of this layer.
FUNCTION __attribute__((always_inline)) void NAME(run_kind)(const struct NAME(band) *b, int64_t kind, int64_t layer,
                                                            int64_t steps) {
    const struct rollout *o = b->o;
    const int64_t H = o->hidden, P = o->padded, X = NAME(features)(o, layer);
    const int gates = kind == LSTM ? 4 : kind == GRU ? 3 : 1, sums_ = kind == ELMAN ? 1 : 4;
    const float *bias = o->packed + b->panels[layer], *panels = bias + sums_ * P;
    const int64_t panel = (X + H) * gates * LANES;
    for (int64_t unit = 0; unit < P; unit += LANES)
        for (int64_t t = 0, high; t < steps; t += high) {
            high = steps - t >= TALL ? TALL : steps - t;
            vector sums[TALL * 4];
            for (int i = 0; i < high; i++)
                for (int s = 0; s < sums_; s++) sums[4 * i + s] = AT(bias + s * P + unit);
            NAME(some_rows)((int)high, gates, sums + (kind == GRU), b->said + t * b->widest, b->widest,
                            panels + unit / LANES * panel, X);
            for (int i = 0; i < high; i++)
                for (int s = 0; s < sums_; s++) AT(b->sums_of_inputs + ((t + i) * P + unit) * 4 + s * LANES) = sums[4 * i + s];
        }
    float *before = b->here + b->at[layer] + X, *after = b->there + b->at[layer] + X, *cells = b->cells + layer * P;
    for (int64_t t = 0; t < steps; t++) {
        for (int64_t unit = 0, many; unit < P; unit += many * LANES) {
            const float *weights = panels + unit / LANES * panel + X * gates * LANES;
            vector sums[BESIDE * 4];
            many = P - unit >= BESIDE * LANES ? BESIDE : 1;
            for (int i = 0; i < many; i++)
                for (int s = 0; s < sums_; s++)
                    sums[4 * i + s] = AT(b->sums_of_inputs + (t * P + unit + i * LANES) * 4 + s * LANES);
            if (many > 1) NAME(row)(gates, sums, before, weights, panel, H);
            else NAME(some_rows)(1, gates, sums, before, 0, weights, H);
            for (int64_t i = 0, u = unit; i < many; i++, u += LANES) {
                float *said = b->said + t * b->widest + u;
                NAME(take)(kind, b->began[t], sums + 4 * i, before + u, after + u, cells + u, said, P - u,
                           layer < o->residual ? NULL : said);
            }
        }
        float *swap = before;
        before = after;
        after = swap;
    }
    if (steps % 2) memcpy(after, before, P * sizeof(float)); // the caller expects the state in its original buffer
}

// All layers take a step.
FUNCTION void NAME(step_all)(struct NAME(band) *b, int64_t rows) {
    for (int64_t layer = 0; layer < b->o->layers; layer++)
        switch (b->o->kind) {
        case LSTM: NAME(step_kind)(b, LSTM, layer, rows); break;
        case GRU: NAME(step_kind)(b, GRU, layer, rows); break;
        default: NAME(step_kind)(b, ELMAN, layer, rows);
        }
    float *swap = b->here;
    b->here = b->there;
    b->there = swap;
}

// All layers take several steps of a single row.
FUNCTION void NAME(run_all)(const struct NAME(band) *b, int64_t steps) {
    for (int64_t layer = 0; layer < b->o->layers; layer++)
        switch (b->o->kind) {
        case LSTM: NAME(run_kind)(b, LSTM, layer, steps); break;
        case GRU: NAME(run_kind)(b, GRU, layer, steps); break;
        default: NAME(run_kind)(b, ELMAN, layer, steps);
        }
}

// Copies the states of a band to or from `hidden` and `cell`, whose rows are `apart` rows apart.
FUNCTION void NAME(move_states)(const struct NAME(band) *b, float *hidden, float *cell, int64_t apart, int64_t rows, int out) {
    const struct rollout *o = b->o;
    const int64_t H = o->hidden, bytes = H * sizeof(float);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t layer = 0; layer < o->layers; layer++) {
            float *h = b->here + r * b->wide + b->at[layer] + NAME(features)(o, layer);
            float *c = b->cells + (r * o->layers + layer) * o->padded;
            int64_t place = (r * apart * o->layers + layer) * H;
            if (out) memcpy(hidden + place, h, bytes);
            else memcpy(h, hidden + place, bytes);
            if (o->kind == LSTM && out) memcpy(cell + place, c, bytes);
            if (o->kind == LSTM && !out) memcpy(c, cell + place, bytes);
        }
}

// Stores the state of a band after a step, if the step is an origin.
FUNCTION void NAME(keep)(const struct NAME(band) *b, int64_t base, int64_t rows, int64_t t) {
    const struct rollout *o = b->o;
    const int64_t left = o->steps - 1 - t, place = o->places - 1 - left / (o->every ? o->every : 1);
    if (place < 0 || left % o->every) return;
    const int64_t first = base * o->places + place, size = o->layers * o->hidden;
    NAME(move_states)(b, o->states + first * size, o->cells + (o->cells ? first * size : 0), o->places, rows, 1);
    for (int64_t r = 0; r < rows; r++) o->bound[first + r * o->places] = b->bound[r];
}

// Writes the observed values of a row at a step as input of the lowest layer.
FUNCTION void NAME(lay)(struct NAME(band) *b, int64_t base, int64_t row, int64_t t, float *x) {
    const struct rollout *o = b->o;
    const int64_t S = o->segment;
    const float runaway = (float)o->runaway, *values = o->values + ((base + row) * o->steps + t) * S;
    for (int64_t j = 0; j < S; j++) {
        int there = values[j] == values[j];
        x[j] = there ? values[j] : 0.0f;
        x[S + j] = (float)there;
        float size = runaway * (x[j] < 0 ? -x[j] : x[j]);
        b->begun[row] |= there;
        if (size > b->bound[row]) b->bound[row] = size;
    }
}

// Reads observed values step by step.
FUNCTION void NAME(read)(struct NAME(band) *b, int64_t base, int64_t rows) {
    const struct rollout *o = b->o;
    for (int64_t t = 0; t < o->steps; t++) {
        int any = 0;
        for (int64_t r = 0; r < rows; r++) {
            NAME(lay)(b, base, r, t, b->here + r * b->wide);
            any |= b->begun[r];
        }
        if (any) NAME(step_all)(b, rows);
        if (o->places) NAME(keep)(b, base, rows, t);
    }
}

// Reads the observed values of a single row layer by layer, which avoids reloading half of the weights at every step.
FUNCTION void NAME(read_alone)(struct NAME(band) *b, int64_t base) {
    const struct rollout *o = b->o;
    for (int64_t t = 0, steps; t < o->steps; t += steps) {
        steps = o->steps - t < ALONE ? o->steps - t : ALONE;
        for (int64_t i = 0; i < steps; i++) {
            NAME(lay)(b, base, 0, t + i, b->said + i * b->widest);
            b->began[i] = b->begun[0];
        }
        NAME(run_all)(b, steps);
    }
}

// Predicts block after block and feeds each back as if it were observed. A diverged row is NaN from then on.
FUNCTION void NAME(say)(struct NAME(band) *b, int64_t base, int64_t rows) {
    const struct rollout *o = b->o;
    const int64_t S = o->segment, H = o->hidden, top = b->at[o->layers - 1] + NAME(features)(o, o->layers - 1);
    for (int64_t r = 0; r < rows; r++) b->begun[r] = 1;
    for (int64_t block = 0; block < o->blocks; block++) {
        for (int64_t r = 0; r < rows; r++) {
            const float *h = b->here + r * b->wide + top;
            float *forecast = o->forecast + ((base + r) * o->blocks + block) * S, *x = b->here + r * b->wide;
            for (int64_t j = 0; j < S; j++) {
                vector sum = ALL(0.0f);
                for (int64_t unit = 0; unit < H; unit += LANES)
                    sum += AT(o->output + j * o->padded + unit) * NAME(load)(h + unit, H - unit);
                float said = o->output[S * o->padded + j];
                UNROLL for (int lane = 0; lane < LANES; lane++) said += sum[lane];
                if (!((said < 0 ? -said : said) <= b->bound[r])) b->gone[r] = 1; // also true for NaN
                forecast[j] = b->gone[r] ? __builtin_nanf("") : said;
                x[j] = b->gone[r] ? 0.0f : said;
                x[S + j] = 1.0f;
            }
        }
        if (block + 1 < o->blocks) NAME(step_all)(b, rows);
    }
}

// Takes working memory for `rows` rows, for ALONE steps of a single one if `alone`; returns it, or NULL if there is none.
FUNCTION float *NAME(take_band_room)(struct NAME(band) *b, const struct rollout *o, int64_t rows, int alone) {
    const int64_t P = o->padded;
    int64_t panels = 0, wide = 0;
    for (int64_t layer = 0; layer < o->layers; layer++) {
        b->at[layer] = wide, b->panels[layer] = panels;
        wide += NAME(features)(o, layer) + P;
        panels += NAME(packed)(o, layer);
    }
    b->at[o->layers] = wide; // a stack returns the output of its highest layer
    b->wide = NAME(padded)(wide + (o->outputs ? P : 0)) + LANES; // avoids powers of two, for which the rows of a tile would
                                                                 // collide in the cache
    int64_t floats = rows * (2 * b->wide + o->layers * P + LANES);
    b->widest = NAME(padded)(o->features > P ? o->features : P);
    if (alone) floats += ALONE * (b->widest + 4 * P);
    float *room = take(floats * sizeof(float) + 2 * rows + 64);
    if (!room) return NULL;
    memset(room, 0, floats * sizeof(float) + 2 * rows);
    b->here = room;
    b->there = b->here + rows * b->wide;
    b->cells = b->there + rows * b->wide;
    b->bound = b->cells + rows * o->layers * P;
    b->said = b->bound + rows * LANES;
    b->sums_of_inputs = b->said + ALONE * b->widest;
    b->begun = (uint8_t *)(room + floats);
    b->gone = b->begun + rows;
    return room;
}

// Runs the whole rollout of rows `first` to `last`.
FUNCTION int NAME(go)(const struct rollout *o, int64_t first, int64_t last) {
    const int64_t rows = last - first;
    struct NAME(band) b = {.o = o};
    const int alone = rows == 1 && o->layers > 1 && o->steps && !o->places;
    float *room = NAME(take_band_room)(&b, o, rows, alone);
    if (!room) return 0;
    for (int64_t r = 0; r < rows; r++) b.bound[r] = o->steps ? (float)o->runaway : o->bound[first + r];
    if (!o->steps) {
        const int64_t start = first * o->layers * o->hidden;
        NAME(move_states)(&b, o->states + start, o->cells + (o->cells ? start : 0), 1, rows, 0);
    }
    if (alone) NAME(read_alone)(&b, first);
    else NAME(read)(&b, first, rows);
    NAME(say)(&b, first, rows);
    free(room);
    return 1;
}
