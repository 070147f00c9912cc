// What a network with a running scale sees of the past: forecaster/model/running.py, row by row. Included after stacks.h, once per
// vector width; undefines the macros of tiles.h at its end.
//
// A view is taken after each segment, of the `lookback` latest values and of sums over all steps. `season` is s in the comments.

// Working memory of one row; arrays by step hold the latest values before the first step and those of the steps.
struct NAME(view) {
    const struct past *p;
    const float *values;
    float *levels, *deviations, *changes; // by step: mean of the season that ends there, value minus level, change from the last
    float *index, *last, *older;          // by step of the next season or block: index, last season and older season, in units
    float *lags;                          // the latest first, in units
    int64_t end;                          // index of the latest value
    float n, unit, level, sums[STATISTICS];
};

FUNCTION vector NAME(size)(vector x) { return (vector)((NAME(whole))x & 0x7fffffff); }

FUNCTION vector NAME(iota)(float first) {
    vector x;
    UNROLL for (int lane = 0; lane < LANES; lane++) x[lane] = first + (float)lane;
    return x;
}

FUNCTION vector NAME(where)(NAME(whole) mask, vector x) { return (vector)(mask & (NAME(whole))x); } // 0 elsewhere

FUNCTION vector NAME(within)(vector x, float bound) { return MOST(ALL(-bound), LEAST(ALL(bound), x)); }

FUNCTION vector NAME(compress)(vector x) { return x / ROOT(1.0f + NAME(size)(x)); }

FUNCTION float NAME(total)(vector x) {
    float sum = 0;
    UNROLL for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
}

// Natural logarithm of positive numbers: x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), and a polynomial (Moshier, Cephes).
FUNCTION vector NAME(log)(vector x) {
    NAME(whole) bits = (NAME(whole))x, k = (bits - 0x3f3504f3) >> 23;
    vector f = (vector)(bits - (k << 23)) - 1.0f, exponent = __builtin_convertvector(k, vector);
    vector series = f * 7.0376836e-2f - 1.1514610e-1f;
    series = series * f + 1.1676999e-1f;
    series = series * f - 1.2420141e-1f;
    series = series * f + 1.4249323e-1f;
    series = series * f - 1.6668058e-1f;
    series = series * f + 2.0000715e-1f;
    series = series * f - 2.4999994e-1f;
    series = series * f + 3.3333331e-1f;
    vector square = f * f;
    return f + (square * f * series - exponent * 2.1219444e-4f - 0.5f * square) + exponent * 0.693359375f;
}

FUNCTION float NAME(most)(float a, float b) { return a > b ? a : b; }
FUNCTION float NAME(least)(float a, float b) { return a < b ? a : b; }

// Fills the arrays by step, from the first step that the row has read.
FUNCTION void NAME(prepare)(const struct NAME(view) *w, int64_t first) {
    const int64_t s = w->p->season, size = w->p->lookback + w->p->steps;
    const float *v = w->values;
    for (int64_t i = first > s - 1 ? first : s - 1; i < size; i += LANES) { // reads and writes up to a vector past the end
        vector sum = ALL(0.0f);
        for (int64_t j = 0; j < s; j++) sum += AT(v + i - j);
        vector level = sum / (float)s;
        AT(w->levels + i) = level;
        AT(w->deviations + i) = AT(v + i) - level;
    }
    for (int64_t i = first > 1 ? first : 1; i < size; i += LANES) AT(w->changes + i) = AT(v + i) - AT(v + i - 1);
}

// Adds one step to the statistics.
FUNCTION void NAME(count)(const struct NAME(view) *w, double *sums, int64_t i, int missing) {
    const int64_t s = w->p->season;
    const float *v = w->values;
#define CHANGED(lag, ago) (n > (lag) + (ago) ? (double)v[i - (ago)] - (double)v[i - (ago) - (lag)] : 0.0)
    const double x = v[i], n = sums[STEPS] += 1.0;
    const double change = CHANGED(1, 0), seasonal = CHANGED(s, 0), distant = CHANGED(4 * s, 0);
    sums[CHANGE] += change < 0 ? -change : change;
    sums[SEASONAL_CHANGE] += seasonal < 0 ? -seasonal : seasonal;
    sums[FIRST_SEASON] += n <= s ? x : 0.0;
    if (x < sums[LOW]) sums[LOW] = x;
    if (x > sums[HIGH]) sums[HIGH] = x;
    sums[MISSING] += missing;
    sums[SQUARED] += change * change;
    sums[PRODUCT] += change * CHANGED(1, 1);
    sums[SEASONAL_SQUARED] += seasonal * seasonal;
    sums[SEASONAL_PRODUCT] += seasonal * CHANGED(s, 1);
    sums[LONG_SQUARED] += distant * distant;
#undef CHANGED
}

// Level and unit, from the sums so far.
FUNCTION void NAME(measure)(struct NAME(view) *w, const double *sums) {
    const float s = (float)w->p->season;
    for (int i = 0; i < STATISTICS; i++) w->sums[i] = (float)sums[i];
    const float n = w->n = w->sums[STEPS], change = w->sums[CHANGE] / NAME(most)(n - 1, 1);
    w->unit = (w->sums[SEASONAL_CHANGE] + change) / (NAME(most)(n - s, 0) + 1) + 0.02f * change;
    if (!(w->unit > 0)) w->unit = 1.0f;
    w->level = w->levels[w->end] * s / NAME(most)(NAME(least)(n, s), 1); // values before the first step are 0
}

// The seasonal index of each step of the next season.
FUNCTION void NAME(find_index)(struct NAME(view) *w) {
    const int64_t s = w->p->season;
    w->index[0] = 0.0f;
    if (s == 1) return;
    const float *next = w->deviations + w->end - s + 1;
    vector all = ALL(0.0f);
    for (int64_t q = 0; q < s; q += LANES) {
        vector sum = ALL(0.0f), weights = ALL(0.0f), age = (float)(2 * s - 1) - NAME(iota)((float)q);
        float weight = 1.0f;
        for (int64_t cycle = 0; cycle < CYCLES; cycle++, weight *= 0.9f) {
            vector counts = NAME(where)(age + (float)(cycle * s) <= w->n, ALL(weight));
            sum += counts * NAME(load)(next + q - cycle * s, s - q);
            weights += counts;
        }
        AT(w->index + q) = sum = sum / MOST(ALL(TINY), weights);
        all += NAME(where)(NAME(iota)((float)q) < (float)s, sum);
    }
    const float mean = NAME(total)(all) / (float)s;
    for (int64_t q = 0; q < s; q += LANES) AT(w->index + q) = AT(w->index + q) - mean;
}

FUNCTION vector NAME(to_units)(const struct NAME(view) *w, vector x) { return NAME(within)((x - w->level) / w->unit, MAX_UNITS); }

// The latest values without their season, what the last seasons forecast, and the index, in units. Returns whether there is an
// older season.
FUNCTION int NAME(find_seasons)(struct NAME(view) *w) {
    const struct past *p = w->p;
    const int64_t s = p->season;
    const float *v = w->values + w->end;
    for (int64_t k = 0; k < LAGS; k++) w->lags[k] = v[-k] - w->index[s - 1 - k % s];
    for (int64_t k = 0; k < LAGS; k += LANES)
        AT(w->lags + k) = NAME(where)(NAME(iota)((float)k) < w->n, NAME(to_units)(w, AT(w->lags + k)));
    for (int64_t q = 0; q < p->phases; q += LANES) {
        vector units = NAME(to_units)(w, NAME(load)(v - s + 1 + q, p->phases - q));
        AT(w->last + q) = NAME(where)(((float)(s - 1) - NAME(iota)((float)q) < w->n) & (s > 1 ? -1 : 0), units);
        AT(w->index + q) = NAME(within)(AT(w->index + q) / w->unit, MAX_UNITS);
    }
    const int64_t cycle = p->long_season ? p->long_season : s, cycles = p->long_season ? LONG_CYCLES : 1;
    float weights = 0.0f, weight = 1.0f;
    memset(w->older, 0, p->older * sizeof(float));
    for (int64_t c = 1; s > 1 && c <= cycles; c++, weight *= 0.7f) {
        const int64_t age = c * cycle, back = p->long_season ? age : 2 * s; // of the level, and of the first value
        if (!((float)(age + s) <= w->n)) break;
        const float level = w->levels[w->end - age];
        for (int64_t q = 0; q < p->older; q++) w->older[q] += weight * (v[q % cycle - back + 1] - level);
        weights += weight;
    }
    for (int64_t q = 0; q < p->older; q += LANES)
        AT(w->older + q) = NAME(within)(AT(w->older + q) / NAME(most)(weights, TINY) / w->unit, MAX_UNITS);
    return weights > 0;
}

// Sums of changes, the latest first: absolute, squared, and products with the change before each.
FUNCTION void NAME(sum_changes)(const float *changes, int64_t count, float *sums) {
    vector absolute = ALL(0.0f), squared = ALL(0.0f), product = ALL(0.0f);
    for (int64_t i = 0; i < count; i += LANES) {
        vector x = NAME(load)(changes + i, count - i), before = i ? AT(changes + i - 1) : AT(changes + i);
        if (!i) UNROLL for (int lane = LANES - 1; lane >= 0; lane--) before[lane] = lane ? x[lane - 1] : 0.0f;
        absolute += NAME(size)(x), squared += x * x, product += x * before;
    }
    sums[0] = NAME(total)(absolute), sums[1] = NAME(total)(squared), sums[2] = NAME(total)(product);
}

FUNCTION float NAME(slope)(const struct NAME(view) *w, float span) {
    const float distance = NAME(least)(NAME(most)(w->n - (float)w->p->season, 0), span);
    return (w->levels[w->end] - w->levels[w->end - (int64_t)distance]) / NAME(most)(distance, 1);
}

FUNCTION float NAME(ratio)(float first, float second) { return first / NAME(most)(second, TINY) + 1e-3f; }

// Numbers that describe the past, in the order of `_scalars`; the slopes are in units per step.
FUNCTION void NAME(describe)(const struct NAME(view) *w, const float *slopes, int has_older, float *scalars) {
    const struct past *p = w->p;
    const int64_t s = p->season, few = s > 6 ? s : 6, count = (CYCLES + 1) * s > LAGS + 1 ? (CYCLES + 1) * s - 1 : LAGS;
    const float n = w->n, unit = w->unit, *sums = w->sums, season = (float)s, steps = NAME(most)(n - 1, 1);
    const float change = sums[CHANGE] / steps, first_level = sums[FIRST_SEASON] / NAME(most)(NAME(least)(n, season), 1);
    float all[3], recent[3], three[3], rest[3], unexplained[2 * LAGS + LANES] = {0}, logs[3 * LANES] = {0};
    NAME(sum_changes)(w->changes + w->end - count + 1, count, all);
    NAME(sum_changes)(w->changes + w->end - few + 1, few, recent);
    NAME(sum_changes)(w->changes + w->end - 2, 3, three);
    for (int64_t k = 0; k < LAGS - 1; k++) unexplained[k] = (float)(k + 1) < n ? w->lags[k] - w->lags[k + 1] : 0.0f;
    NAME(sum_changes)(unexplained, LAGS - 1, rest);
    vector squares = ALL(0.0f);
    for (int64_t q = 0; q < p->phases; q += LANES) { // a phase occurs in each season of the block
        vector x = NAME(load)(w->index + q, p->phases - q), times = ALL((float)(p->block / p->phases));
        times += NAME(where)(NAME(iota)((float)q) < (float)(p->block % p->phases), ALL(1.0f));
        squares += x * x * times;
    }
    const float energy = NAME(total)(squares) / (float)p->block;
    const float long_variance = sums[LONG_SQUARED] / NAME(most)(n - 4 * season, 1) / 4;
    const float seasonal_variance = sums[SEASONAL_SQUARED] / NAME(most)(n - season, 1);
    vector roots = ALL(0.0f);
    roots[0] = energy, roots[1] = sums[SQUARED];
    roots = ROOT(roots);
    logs[0] = NAME(most)(n, 1), logs[1] = n / season + 0.1f, logs[2] = NAME(ratio)(change, unit);
    logs[3] = NAME(ratio)(recent[0] / NAME(least)(steps, (float)few), change);
    logs[4] = NAME(ratio)(all[0] / NAME(least)(steps, (float)count), change);
    logs[5] = NAME(ratio)(rest[0] / NAME(least)(steps, LAGS - 1), 1.0f);
    logs[6] = NAME(ratio)(long_variance, seasonal_variance);
    logs[7] = NAME(ratio)(seasonal_variance, season * sums[SQUARED] / steps);
    logs[8] = NAME(ratio)(three[0] / 3, change), logs[9] = 1.0f + roots[0];
    float *areas = logs + 16; // in a vector of their own
    areas[0] = (w->level - sums[LOW]) / unit, areas[1] = (sums[HIGH] - w->level) / unit;
    for (int i = 0; i < 3; i++) areas[2 + i] = season * slopes[i];
    areas[5] = (w->level - first_level) / NAME(most)(roots[1], TINY);
    for (int64_t i = 0; i < 10; i += LANES) AT(logs + i) = NAME(log)(NAME(within)(MOST(ALL(1e-30f), AT(logs + i)), 1e30f));
    for (int64_t i = 0; i < 6; i += LANES) { // asinh
        vector x = AT(areas + i), size = LEAST(ALL(1e4f), NAME(size)(x));
        vector y = NAME(log)(size + ROOT(size * size + 1.0f));
        AT(areas + i) = (vector)((NAME(whole))y | ((NAME(whole))x & (int32_t)0x80000000));
    }
    const float found[] = {logs[0] - 3, logs[1] - 1, (float)(p->log_season - 1.5), (float)(s == 1), logs[2], logs[3], logs[4],
                           logs[5], all[2] / NAME(most)(all[1], 1e-12f), rest[2] / NAME(most)(rest[1], 1e-12f), areas[0],
                           areas[1], sums[MISSING] / NAME(most)(n, 1), areas[2], areas[3], areas[4], logs[9],
                           sums[PRODUCT] / NAME(most)(sums[SQUARED], TINY),
                           sums[SEASONAL_PRODUCT] / NAME(most)(sums[SEASONAL_SQUARED], TINY), n > 4 * season ? logs[6] : 0.0f,
                           logs[7], areas[5], logs[8]};
    const int64_t total = sizeof found / sizeof *found;
    for (int64_t i = 0; i < total; i++) scalars[i] = NAME(most)(NAME(least)(found[i], MAX_FEATURE), -MAX_FEATURE);
    scalars[total] = (float)has_older;
}

// Writes the simple forecasts of the next block.
FUNCTION void NAME(forecast)(const struct NAME(view) *w, const float *slopes, float *forecasts) {
    const struct past *p = w->p;
    const int64_t B = p->block;
    const float mean = (w->lags[0] + w->lags[1] + w->lags[2]) / 3;
    for (int64_t b = 0; b < B; b++) {
        const float distance = (float)(b + 1) + (float)(p->season - 1) / 2;
        forecasts[b] = w->last[b % p->phases];
        forecasts[B + b] = w->index[b % p->phases];
        forecasts[2 * B + b] = w->older[b % p->older];
        forecasts[3 * B + b] = w->lags[0];
        forecasts[4 * B + b] = mean;
        for (int i = 0; i < 3; i++)
            forecasts[(5 + i) * B + b] = NAME(most)(NAME(least)(slopes[i] * distance, MAX_UNITS), -MAX_UNITS);
    }
}

// Writes the features after a segment and, after the last one, the simple forecasts.
FUNCTION void NAME(take_view)(struct NAME(view) *w, const double *sums, float *features, float *scale, float *forecasts) {
    const struct past *p = w->p;
    const float s = (float)p->season;
    NAME(measure)(w, sums);
    NAME(find_index)(w);
    const int has_older = NAME(find_seasons)(w);
    const float first_level = w->sums[FIRST_SEASON] / NAME(most)(NAME(least)(w->n, s), 1);
    const float whole = w->n > s ? (w->level - first_level) / NAME(most)(w->n - s, 1) : 0.0f;
    const float slopes[] = {NAME(slope)(w, s) / w->unit, NAME(slope)(w, s > 1 ? 3 * s : 4) / w->unit, whole / w->unit};
    scale[0] = w->level, scale[1] = w->unit;
    for (int64_t k = 0; k < LAGS; k += LANES) NAME(store)(features + k, NAME(compress)(AT(w->lags + k)), LAGS - k);
    features += LAGS;
    for (int64_t q = 0, D = p->phases; q < D; q += LANES) {
        vector index = AT(w->index + q);
        NAME(store)(features + q, NAME(compress)(AT(w->last + q) - index), D - q);
        NAME(store)(features + D + q, NAME(compress)(index), D - q);
    }
    features += 2 * p->phases;
    for (int64_t q = 0; q < p->older; q++) features[q] = w->older[q] - w->index[q % p->phases];
    for (int64_t q = 0; q < p->older; q += LANES)
        NAME(store)(features + q, NAME(compress)(NAME(load)(features + q, p->older - q)), p->older - q);
    NAME(describe)(w, slopes, has_older, features + p->older);
    if (forecasts) NAME(forecast)(w, slopes, forecasts);
}

// Takes the views of one row. `values` and the arrays by step have room for a vector more.
FUNCTION void NAME(view_row)(struct NAME(view) *w, int64_t row) {
    const struct past *p = w->p;
    const int64_t T = p->steps, L = p->lookback, segments = T / p->segment, size = L + T;
    const uint8_t *started = p->started + row * T;
    double *sums = p->statistics + row * STATISTICS;
    int64_t first = 0;
    while (first < T && !started[first]) first++;
    memcpy((float *)w->values, p->values + row * size, size * sizeof(float));
    memset(w->levels, 0, 3 * (size + LANES) * sizeof(float));
    NAME(prepare)(w, sums[STEPS] > 0 ? 0 : L + first);
    if (!(sums[STEPS] > 0) && first < T) w->changes[L + first] = 0.0f;
    for (int64_t t = first; t < T; t++) {
        const int64_t segment = t / p->segment, place = row * segments + segment;
        NAME(count)(w, sums, L + t, p->missing[row * T + t]);
        if ((t + 1) % p->segment) continue;
        w->end = L + t;
        NAME(take_view)(w, sums, p->features + place * p->views, p->scales + place * 2,
                        segment + 1 < segments ? NULL : p->forecasts + row * FORECASTS * p->block);
    }
}

FUNCTION int NAME(view_rows)(const struct past *p) {
    const int64_t by_step = NAME(padded)(p->lookback + p->steps) + LANES, season = NAME(padded)(p->season) + LANES;
    const int64_t older = NAME(padded)(p->older) + LANES;
    float *room = take((4 * by_step + 2 * season + older + 2 * LAGS) * sizeof(float)), *next = room;
    if (!room) return 0;
    memset(room, 0, (4 * by_step + 2 * season + older + 2 * LAGS) * sizeof(float));
    struct NAME(view) w = {.p = p};
    w.values = next, next += by_step;
    w.levels = next, next += p->lookback + p->steps + LANES;
    w.deviations = next, next += p->lookback + p->steps + LANES;
    w.changes = next, next = room + 4 * by_step;
    w.index = next, next += season;
    w.last = next, next += season;
    w.older = next, next += older;
    w.lags = next;
    for (int64_t row = 0; row < p->rows; row++) NAME(view_row)(&w, row);
    free(room);
    return 1;
}

#undef vector
#undef AT
#undef ALL
#undef UNROLL
#undef PANEL
#undef LANES
#undef TALL
#undef BESIDE
#undef FUNCTION
#undef NAME
#undef LEAST
#undef MOST
#undef ROOT
#undef FIRST
#undef PART_LOAD
#undef PART_STORE
