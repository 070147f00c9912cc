// Inserts the missing timestamps of a regular series, without values. Irregular series are left for the service to judge.

const DAY = 86_400_000;
const MAX_GROWTH = 4; // a filled series is at most about this many times as long as the original
const TIMESTAMP_PATTERN = /^\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:Z|[+-]\d\d:\d\d)?)?$/;

/**
 * Returns the series `{ ds, y }` of points `{ timestamp: { text, epochMs, wallTime }, y }` in order of time, with its gaps
 * filled. A series without a grid, or with too many gaps, is returned as it is.
 */
export function fillGaps(points, businessDays) {
  const unfilled = { ds: points.map((point) => point.timestamp.text), y: points.map((point) => point.y) };
  const grid = points.length < 3 ? null : detectGrid(points, businessDays);
  if (grid === null) return unfilled;
  const filled = { ds: [], y: [] };
  const maxSteps = MAX_GROWTH * points.length + 100;
  let index = 0;
  for (let step = 0; index < points.length; step += 1) {
    if (step > maxSteps) return unfilled;
    const { timestamp, y } = points[index];
    const isPresent = grid.positionAt(step) === grid.positionOf(timestamp);
    filled.ds.push(isPresent ? timestamp.text : grid.format(step));
    filled.y.push(isPresent ? y : null);
    if (isPresent) index += 1;
  }
  return filled;
}

/** Returns the grid of a series (see `makeGrid`), or null if nothing is missing or no grid is recognized. */
function detectGrid(points, businessDays) {
  const [first] = points;
  if (typeof first.timestamp.text === "number") {
    return makeGrid(points, (timestamp) => timestamp.epochMs, (position) => position);
  }
  const suffix = first.timestamp.text.slice(10).replace(/^[T ][\d:.]*/, "");
  const hasSameFormat = ({ text }) =>
    text.length === first.timestamp.text.length && text.endsWith(suffix) && TIMESTAMP_PATTERN.test(text);
  if (!points.every((point) => hasSameFormat(point.timestamp))) return null;
  const format = (wallTime) => {
    const text = new Date(wallTime).toISOString();
    const length = first.timestamp.text.length - suffix.length;
    return length === 10 ? text.slice(0, 10) : text.slice(0, length).replace("T", first.timestamp.text[10]) + suffix;
  };
  const wallTimes = points.map((point) => point.timestamp.wallTime);
  const dates = wallTimes.map((wallTime) => new Date(wallTime));
  const timeOfDay = wallTimes[0] % DAY;
  if (wallTimes.every((wallTime) => wallTime % DAY === timeOfDay)) {
    const day = dates[0].getUTCDate();
    const sameDayOfMonth = dates.every((date) => date.getUTCDate() === day);
    const allMonthEnds = dates.every((date) => new Date(date.getTime() + DAY).getUTCDate() === 1);
    if ((sameDayOfMonth && day <= 28) || allMonthEnds) {
      const monthOf = ({ wallTime }) => new Date(wallTime).getUTCFullYear() * 12 + new Date(wallTime).getUTCMonth();
      const toDate = (month) =>
        Date.UTC(Math.floor(month / 12), (month % 12) + (allMonthEnds ? 1 : 0), allMonthEnds ? 0 : day);
      return makeGrid(points, monthOf, (month) => format(toDate(month) + timeOfDay));
    }
    // In a series on business days, weekends are not gaps.
    const onWeekdays = dates.every((date) => date.getUTCDay() % 6 !== 0);
    const hasDailySteps = wallTimes.some((wallTime, index) => index > 0 && wallTime - wallTimes[index - 1] < 2 * DAY);
    if (onWeekdays && (businessDays || points.length > 10) && hasDailySteps) return null;
  }
  return makeGrid(points, (timestamp) => timestamp.wallTime, format);
}

/**
 * Returns the grid on which timestamps lie: `positionAt(step)` is the position of a step, `positionOf(timestamp)` the
 * position of a timestamp, `format(step)` the text of a step's timestamp. Null if nothing is missing, or if fewer than
 * half of the steps have the length of the grid's step.
 */
function makeGrid(points, positionOf, formatPosition) {
  const positions = points.map((point) => positionOf(point.timestamp));
  const steps = positions.slice(1).map((position, index) => position - positions[index]);
  const gridStep = steps.reduce(greatestCommonDivisor);
  const regularSteps = steps.filter((step) => step === gridStep).length;
  if (regularSteps === steps.length || regularSteps * 2 < steps.length) return null;
  const positionAt = (step) => positions[0] + step * gridStep;
  return { positionAt, positionOf, format: (step) => formatPosition(positionAt(step)) };
}

function greatestCommonDivisor(a, b) {
  while (b !== 0) [a, b] = [b, a % b];
  return Math.abs(a);
}
