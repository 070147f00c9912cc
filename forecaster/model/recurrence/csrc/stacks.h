// Dense layers, and a stack of recurrent layers that reads given inputs. Included after rolls.h, once per vector width.

FUNCTION void NAME(dense)(const struct dense *d) {
    const int64_t X = d->features, U = d->units, at_once = 8 * TALL;
    for (int64_t base = 0; base < d->rows; base += at_once) { // few enough rows to stay in the L1 cache
        const int64_t end = base + at_once < d->rows ? base + at_once : d->rows;
        for (int64_t unit = 0; unit < U; unit += PANEL)
            for (int64_t row = base, high; row < end; row += high) {
                high = end - row >= TALL ? TALL : 1;
                vector sums[TALL * 4];
                for (int i = 0; i < high; i++)
                    for (int v = 0; v < 4; v++) sums[4 * i + v] = AT(d->bias + unit + v * LANES);
                NAME(tile)((int)high, 4, sums, d->inputs + row * X, X, 1, d->packed + unit * X, PANEL, X);
                for (int i = 0; i < high; i++)
                    for (int64_t v = 0, n = U - unit; v < 4 && n > 0; v++, n -= LANES) {
                        vector sum = sums[4 * i + v];
                        NAME(store)(d->outputs + (row + i) * U + unit + v * LANES, d->silu ? sum * NAME(sigmoid)(sum) : sum, n);
                    }
            }
    }
}

// Reads all steps of a single row layer by layer.
FUNCTION const float *NAME(read_inputs_alone)(struct NAME(band) *b, int64_t row) {
    const struct rollout *o = b->o;
    const int64_t X = o->features, T = o->steps;
    for (int64_t t = 0, steps; t < T; t += steps) {
        steps = T - t < ALONE ? T - t : ALONE;
        for (int64_t i = 0; i < steps; i++) {
            memcpy(b->said + i * b->widest, o->inputs + (row * T + t + i) * X, X * sizeof(float));
            b->began[i] = o->started[row * T + t + i];
        }
        NAME(run_all)(b, steps);
        if (t + steps == T) return b->said + (steps - 1) * b->widest;
    }
    return b->said;
}

// Reads all steps of some rows step by step.
FUNCTION void NAME(read_inputs)(struct NAME(band) *b, int64_t base, int64_t rows) {
    const struct rollout *o = b->o;
    const int64_t X = o->features, T = o->steps;
    for (int64_t t = 0; t < T; t++) {
        int any = 0;
        for (int64_t r = 0; r < rows; r++) {
            memcpy(b->here + r * b->wide, o->inputs + ((base + r) * T + t) * X, X * sizeof(float));
            any |= b->begun[r] = o->started[(base + r) * T + t];
        }
        if (any) NAME(step_all)(b, rows);
    }
}

// Reads the inputs of rows `first` to `last`, on from their states, which are replaced; stores the outputs after the last step.
FUNCTION int NAME(read_stack)(const struct rollout *o, int64_t first, int64_t last) {
    const int64_t rows = last - first, start = first * o->layers * o->hidden, bytes = o->hidden * sizeof(float);
    struct NAME(band) b = {.o = o};
    float *room = NAME(take_band_room)(&b, o, rows, rows == 1);
    if (!room) return 0;
    NAME(move_states)(&b, o->states + start, o->cells + start, 1, rows, 0);
    if (rows == 1)
        memcpy(o->outputs + first * o->hidden, NAME(read_inputs_alone)(&b, first), bytes);
    else {
        NAME(read_inputs)(&b, first, rows);
        for (int64_t r = 0; r < rows; r++) // the last step swapped `here` and `there`
            memcpy(o->outputs + (first + r) * o->hidden, b.there + r * b.wide + b.at[o->layers], bytes);
    }
    for (int64_t r = first; r < last; r++)
        if (!o->started[(r + 1) * o->steps - 1]) memset(o->outputs + r * o->hidden, 0, bytes); // never observed
    NAME(move_states)(&b, o->states + start, o->cells + start, 1, rows, 1);
    free(room);
    return 1;
}
