// Generates example series in the frequency of the deployed model, for users without data at hand.

import { parseTimestamp, timestampRange } from "./timestamps.js";

const SERIES_SHAPES = [
  { id: "coffee", level: 240, trend: 0.5, amplitude: 0.16, phase: 0.1, noise: 0.035 },
  { id: "ice cream", level: 180, trend: 0.35, amplitude: 0.55, phase: 0.45, noise: 0.06 },
  { id: "soup", level: 130, trend: -0.1, amplitude: 0.4, phase: 0.95, noise: 0.06 },
];
const MIN_STEPS = 72, MAX_STEPS = 1500;
const WEEKDAYS = ["MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"];

/** Returns `{ series, freq }`; every call with the same arguments returns the same values. */
export function makeExample({ freq = "MS", season = 12, context = 24 } = {}) {
  const period = season > 1 ? season : 12;
  const steps = Math.min(MAX_STEPS, Math.max(MIN_STEPS, 6 * period, 2 * context));
  const random = makeRandom(7);
  const supportedFreq = timestampRange(firstTimestamp(freq), freq, steps) === null ? "MS" : freq;
  const ds = timestampRange(firstTimestamp(supportedFreq), supportedFreq, steps);
  const series = SERIES_SHAPES.map(({ id, level, trend, amplitude, phase, noise }) => {
    const y = ds.map((_, step) => {
      const angle = 2 * Math.PI * (step / period - phase);
      const seasonality = amplitude * (Math.cos(angle) + 0.22 * Math.cos(2 * angle + 1));
      const growth = 1 + (trend * step) / steps;
      return Math.round(10 * level * growth * (1 + seasonality) * (1 + noise * sampleNormal(random))) / 10;
    });
    if (id === "coffee") y[Math.floor(steps * 0.8)] = null; // an example of a missing value
    return { id, ds: [...ds], y };
  });
  return { series, freq: supportedFreq };
}

/** Returns a first timestamp that lies on the grid of a frequency. */
function firstTimestamp(freq) {
  if (/^\d+$/.test(freq)) return parseTimestamp("1");
  const [, weekday = "SUN"] = /^W-(\w{3})/.exec(freq) ?? [];
  if (freq.startsWith("W")) {
    const day = 7 + Math.max(0, WEEKDAYS.indexOf(weekday)); // 2019-01-07 is a Monday
    return parseTimestamp(`2019-01-${String(day).padStart(2, "0")}`);
  }
  const unit = freq.replace(/^\d*/, "").slice(0, 2);
  if (unit === "ME") return parseTimestamp("2018-01-31");
  if (unit === "QE") return parseTimestamp("2008-03-31");
  if (unit === "YE") return parseTimestamp("1950-12-31");
  if (unit === "YS") return parseTimestamp("1950-01-01");
  if (unit === "QS") return parseTimestamp("2008-01-01");
  return parseTimestamp(/^\d*(h|min|s)$/.test(freq) ? "2026-01-05T00:00" : "2018-01-01");
}

/** Returns an approximately normal number with mean 0: a sum of four uniform numbers. */
function sampleNormal(random) {
  return random() + random() + random() + random() - 2;
}

/** Returns a generator of pseudorandom numbers in [0, 1) (linear congruential; Numerical Recipes, 2nd ed., section 7.1). */
function makeRandom(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}
