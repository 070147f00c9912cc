// Stamps that are missing from a regular series, put in with no value; what is not regular is left to the server to judge.

const DAY = 86_400_000;
const MOST_TIMES = 4; // as long as the series was
const STYLE = /^\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:Z|[+-]\d\d:\d\d)?)?$/;

/** The series `{ ds, y }` of points `{ when: { text, at, face }, y }` in order, as whole as it can be made. */
export function whole(points, businessDays) {
  const plain = { ds: points.map((point) => point.when.text), y: points.map((point) => point.y) };
  const walk = points.length < 3 ? null : walkOf(points, businessDays);
  if (walk === null) return plain;
  const filled = { ds: [], y: [] };
  const most = MOST_TIMES * points.length + 100;
  let place = 0;
  for (let step = 0; place < points.length; step += 1) {
    if (step > most) return plain;
    const here = walk.at(step), { when, y } = points[place];
    const seen = here === walk.of(when);
    filled.ds.push(seen ? when.text : walk.write(step));
    filled.y.push(seen ? y : null);
    if (seen) place += 1;
  }
  return filled;
}

/** How a series steps: the place on its grid of a step and of a stamp, and how a stamp is written; null where nothing is missing. */
function walkOf(points, businessDays) {
  const [first] = points;
  if (typeof first.when.text === "number") {
    return walk(points, (when) => when.at, (place) => place);
  }
  const suffix = first.when.text.slice(10).replace(/^[T ][\d:.]*/, "");
  const alike = (when) => when.text.length === first.when.text.length && when.text.endsWith(suffix) && STYLE.test(when.text);
  if (!points.every((point) => alike(point.when))) return null;
  const write = (face) => {
    const text = new Date(face).toISOString();
    const length = first.when.text.length - suffix.length;
    return length === 10 ? text.slice(0, 10) : text.slice(0, length).replace("T", first.when.text[10]) + suffix;
  };
  const dates = points.map((point) => new Date(point.when.face));
  const clock = first.when.face % DAY;
  if (points.every((point) => point.when.face % DAY === clock)) {
    const day = dates[0].getUTCDate();
    const same = dates.every((date) => date.getUTCDate() === day);
    const ends = dates.every((date) => new Date(date.getTime() + DAY).getUTCDate() === 1);
    if ((same && day <= 28) || ends) {
      const month = (face) => new Date(face).getUTCFullYear() * 12 + new Date(face).getUTCMonth();
      return walk(points, (when) => month(when.face), (place) =>
        write(Date.UTC(Math.floor(place / 12), (place % 12) + (ends ? 1 : 0), ends ? 0 : day) + clock));
    }
    const weekdays = dates.every((date) => date.getUTCDay() % 6 !== 0);
    if (weekdays && (businessDays || points.length > 10) && points.some((point, place) => place > 0 && point.when.face - points[place - 1].when.face < 2 * DAY)) return null;
  }
  return walk(points, (when) => when.face, write);
}

function walk(points, of, write) {
  const places = points.map((point) => of(point.when));
  const steps = places.slice(1).map((place, before) => place - places[before]);
  const step = steps.reduce(divisor);
  const usual = steps.filter((one) => one === step).length;
  if (usual === steps.length || usual * 2 < steps.length) return null;
  const at = (number) => places[0] + number * step;
  return { at, of, write: (number) => write(at(number)) };
}

function divisor(one, other) {
  while (other !== 0) [one, other] = [other, one % other];
  return Math.abs(one);
}
