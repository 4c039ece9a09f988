// The trials: columns as the page embeds them, which are in scope, their scales, and their text.
const data = JSON.parse(document.getElementById("trials-data").textContent);
const LOSS = "loss"; // the axis of the losses, beside those of the settings
const everything = [...Array(data.trials).keys()];

const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer;
const six = (value) => (Number.isFinite(value) ? Number(value.toPrecision(6)) : value);

const unpacked = new Map();

/** A column's values in the order of trials; unpacked when first asked for. */
function values(name) {
  if (!unpacked.has(name)) unpacked.set(name, unpack(data.columns[name]));
  return unpacked.get(name);
}

function unpack(column) {
  if (column.values) return column.values;
  if (column.floats) return Array.from(new Float32Array(bytes(column.floats)), six);
  const codes = column.codes ? new Uint16Array(bytes(column.codes)) : new Uint16Array(data.trials);
  return Array.from(codes, (code) => column.distinct[code]);
}

/** Rows as CSV with all columns; what is no number is left empty. */
function csv(rows) {
  const names = Object.keys(data.columns);
  const columns = names.map(values);
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const line = (cells) => cells.map((cell) => quoted(Number.isNaN(cell) ? "" : String(cell))).join(",");
  return [line(names), ...rows.map((row) => line(columns.map((column) => column[row])))].join("\n") + "\n";
}

/** A number as the page writes it: four significant digits, 1e11 rather than 1e+11. */
function short(value, digits = 4) {
  const size = Math.abs(value);
  const long = size && (size < 1e-4 || size >= 1e6);
  const text = long ? value.toExponential(digits - 1) : String(Number(value.toPrecision(digits)));
  return text.replace(/\.?0*e\+?/, "e").replace("-", "−");
}

const count = (number) => number.toLocaleString("en");
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

// Losses compare among trials of one size and length of training.
const alikeKeys = everything.map((row) => data.alike.map((name) => values(name)[row]).join("\n"));

/** The sizes and lengths of a stage's trials by key, the commonest first; stage "" is all of them. */
function kindsOf(stage) {
  const found = new Map();
  for (const row of everything) {
    if (stage && values("stage")[row] !== stage) continue;
    const key = alikeKeys[row];
    const text = `${values("shape")[row]}, ${count(values("total_tokens")[row])} tokens`;
    const kind = found.get(key) ?? { key, text, trials: 0 };
    kind.trials += 1;
    found.set(key, kind);
  }
  return [...found.values()].sort((a, b) => b.trials - a.trials);
}

function median(numbers) {
  const sorted = Float64Array.from(numbers).sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/**
 * The trials that figures and table are about, the lowest loss first. ``y`` is by trial: the loss, infinite
 * where it diverged. ``top`` is the highest loss that scales reach, ``pale`` the one that the ramp of colours does.
 */
function scopeOf({ stage, alike, measure }) {
  const stages = values("stage");
  const rows = everything.filter((row) => (!stage || stages[row] === stage) && (!alike || alikeKeys[row] === alike));
  const y = losses(rows, measure);
  rows.sort((a, b) => y[a] - y[b] || a - b);
  const ended = rows.filter((row) => y[row] < Infinity);
  const low = ended.length ? y[ended[0]] : 0;
  const high = ended.length ? y[ended.at(-1)] : low;
  const spread = ended.length ? median(ended.map((row) => y[row])) - low : 0;
  const reach = (share) => Math.max(Math.min(high, low + share * spread), low + 1e-3);
  const kinds = new Set(rows.map((row) => alikeKeys[row]));
  const unit = measure === "relative" ? "mnat/token" : "nats/token";
  const [mixed, axes] = [kinds.size > 1, varying(stage, rows)];
  return { rows, y, ended, low, high, top: reach(4), pale: reach(2.5), mixed, unit, axes, scales: new Map() };
}

function losses(rows, measure) {
  const y = new Array(data.trials).fill(Infinity);
  for (const row of rows) if (values("status")[row] === "ok") y[row] = values("loss")[row];
  if (measure !== "relative") return y;
  const bySeed = new Map();
  for (const row of rows) {
    if (y[row] === Infinity) continue;
    const seed = values("seed")[row];
    bySeed.set(seed, [...(bySeed.get(seed) ?? []), row]);
  }
  for (const same of bySeed.values()) {
    const middle = median(same.map((row) => y[row]));
    for (const row of same) y[row] = 1000 * (y[row] - middle);
  }
  return y;
}

/** The axes that vary over rows in the order of the page's data, and what each explains. */
function varying(stage, rows) {
  const order = stage ? data.stages.find((each) => each.key === stage).order : data.together;
  return Object.entries(order)
    .filter(([name]) => rows.some((row) => values(name)[row] !== values(name)[rows[0]]))
    .map(([name, explains]) => ({ name, explains, kind: data.axes.find((axis) => axis.name === name).kind }));
}

/** The scale of an axis over a scope: log2 for settings, linear for losses; ``at`` is a place by trial. */
function scaleOf(name, scope) {
  if (!scope.scales.has(name)) scope.scales.set(name, name === LOSS ? lossScale(scope) : settingScale(name, scope));
  return scope.scales.get(name);
}

function lossScale({ low, top, y, unit, ended }) {
  const powers = [-5, -4, -3, -2, -1, 0, 1, 2, 3];
  const ticks = steps(low, top, powers.flatMap((power) => [1, 2, 5].map((each) => each * 10 ** power)), 7);
  const labelled = (ended.length ? ticks : []).map((place) => [place, short(six(place))]);
  return { name: LOSS, kind: unit, log: false, lo: low, hi: top, at: y, ticks: labelled };
}

function settingScale(name, scope) {
  const at = values(name).map(Math.log2);
  const places = scope.rows.map((row) => at[row]);
  const lo = places.reduce((a, b) => Math.min(a, b));
  const hi = places.reduce((a, b) => Math.max(a, b));
  const ticks = steps(lo, hi, [0.01, 0.05, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16], 5);
  const { kind } = data.axes.find((axis) => axis.name === name);
  return { name, kind, log: true, lo, hi, at, ticks: ticks.map((place) => [place, short(2 ** place, 3)]) };
}

/** The multiples between two places of the first of these widths that cuts them into few enough parts. */
function steps(lo, hi, widths, most) {
  const width = widths.find((each) => (hi - lo) / each <= most) ?? hi - lo;
  const first = Math.ceil(lo / width - 1e-9);
  return Array.from({ length: Math.floor(hi / width + 1e-9) - first + 1 }, (_, index) => (first + index) * width);
}

/** A place of a scale as the value that it stands for. */
const valueAt = (scale, place) => (scale.log ? 2 ** place : place);
