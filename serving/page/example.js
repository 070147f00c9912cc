// A series that looks like something, for who has none at hand; of the frequency of the model in use.

import { ladder, read } from "./stamps.js";

const SHAPES = [
  { id: "coffee", level: 240, trend: 0.5, swing: 0.16, shift: 0.1, noise: 0.035 },
  { id: "ice cream", level: 180, trend: 0.35, swing: 0.55, shift: 0.45, noise: 0.06 },
  { id: "soup", level: 130, trend: -0.1, swing: 0.4, shift: 0.95, noise: 0.06 },
];
const LEAST = 72, MOST = 1500;

/** `{ series, freq }`; the same at every call. */
export function example({ freq = "MS", season = 12, context = 24 } = {}) {
  const round = season > 1 ? season : 12;
  const steps = Math.min(MOST, Math.max(LEAST, 6 * round, 2 * context));
  const chance = chances(7);
  const usual = ladder(begin(freq), freq, steps) === null ? "MS" : freq;
  const ds = ladder(begin(usual), usual, steps);
  const series = SHAPES.map(({ id, level, trend, swing, shift, noise }) => {
    const y = ds.map((_, step) => {
      const turn = 2 * Math.PI * (step / round - shift);
      const wave = swing * (Math.cos(turn) + 0.22 * Math.cos(2 * turn + 1));
      return Math.round(10 * level * (1 + (trend * step) / steps) * (1 + wave) * (1 + noise * bell(chance))) / 10;
    });
    if (id === "coffee") y[Math.floor(steps * 0.8)] = null; // one that nobody wrote down
    return { id, ds: [...ds], y };
  });
  return { series, freq: usual };
}

function begin(freq) {
  if (/^\d+$/.test(freq)) return read("1");
  const week = /^W-(\w{3})/.exec(freq);
  const days = ["MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"];
  if (freq.startsWith("W")) return read(`2019-01-${String(7 + Math.max(0, days.indexOf(week?.[1] ?? "SUN"))).padStart(2, "0")}`);
  const name = freq.replace(/^\d*/, "").slice(0, 2);
  if (name === "ME") return read("2018-01-31");
  if (name === "QE") return read("2008-03-31");
  if (name === "YE") return read("1950-12-31");
  if (name === "YS") return read("1950-01-01");
  if (name === "QS") return read("2008-01-01");
  return read(/^\d*(h|min|s)$/.test(freq) ? "2026-01-05T00:00" : "2018-01-01");
}

function bell(chance) {
  return chance() + chance() + chance() + chance() - 2;
}

/** Numbers from 0 to 1 that look like chance (a linear congruence, as in Numerical Recipes, 2nd ed., section 7.1). */
function chances(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}
