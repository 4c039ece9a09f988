// What readers choose, and who is told: one selection for figures and table.
const explorer = document.getElementById("explorer");
const part = (name) => explorer.querySelector(`[data-part="${name}"]`);
const view = { stage: data.begin, alike: "", measure: "loss", best: 100, words: [] };
Object.assign(view, { brushes: new Map(), axes: [], marked: [] });
let scope = null;
let selected = [];
let asked = 0;

const lines = parallelCoordinates(part("parallel"), brush, pick);
const panels = slicePanels(part("slices"), (row) => mark(row, true));
const table = trialTable(part, (row) => mark(row, false));

const searched = new Map();

/** A trial's words, in lower case. */
function wordsOf(row) {
  const names = ["hash", "stage", "settings", "seed", "status", "reason", "shape"];
  if (!searched.has(row)) searched.set(row, names.map((name) => values(name)[row]).join("\n").toLowerCase());
  return searched.get(row);
}

function selection() {
  const most = view.best === 100 ? scope.rows.length : Math.ceil((view.best / 100) * scope.ended.length);
  const tests = [...view.brushes].map(([name, [low, high]]) => ({ at: scaleOf(name, scope).at, low, high }));
  return scope.rows
    .slice(0, most)
    .filter((row) => tests.every(({ at, low, high }) => at[row] >= low && at[row] <= high))
    .filter((row) => view.words.every((word) => wordsOf(row).includes(word)));
}

/** The selection anew, in the next frame however often it is asked for. */
function reselect() {
  asked ||= requestAnimationFrame(() => {
    asked = 0;
    choose();
  });
}

function choose(now = false) {
  selected = selection();
  lines.select(selected, view.brushes, now);
  panels.select(selected, view.marked, now);
  table.select(selected);
  const rest = view.best < 100 ? `, the best ${view.best} % by loss` : "";
  part("count").textContent = `${count(selected.length)} of ${plural(scope.rows.length, "trial")} selected${rest}`;
  const most = Math.ceil((view.best / 100) * scope.ended.length);
  part("share").textContent = view.best === 100 ? "all" : `${view.best} % = ${count(most)}`;
  chips();
}

/** A new stage, size or measure: its own axes, and no brush of another scale. */
function rescope() {
  scope = scopeOf(view);
  view.brushes.clear();
  view.marked = view.marked.filter((row) => scope.rows.includes(row));
  view.axes = scope.axes.slice(0, data.shown).map((axis) => axis.name);
  part("mixed").hidden = !scope.mixed;
  part("nothing").hidden = scope.axes.length > 0;
  part("figures").hidden = scope.axes.length === 0;
  boxes();
  redraw();
}

/** Everything that depends on the axes shown, on colours or on widths. */
function redraw(now = false) {
  const scales = view.axes.map((name) => scaleOf(name, scope));
  const stage = data.stages.find((each) => each.key === view.stage);
  const cuts = stage && view.measure === "loss" ? stage.cuts : {};
  lines.show(scope, [...scales, scaleOf(LOSS, scope)]);
  lines.mark(view.marked);
  panels.show(scope, scales, cuts);
  table.show(scope, view.axes);
  choose(now);
  describe(cuts);
  const palest = `${scope.high > scope.pale ? "≥ " : ""}${short(scope.pale)} ${scope.unit}`;
  part("low").textContent = scope.ended.length ? short(scope.low) : "none ended";
  part("high").textContent = scope.ended.length ? palest : "";
  options(part("axis"), [...view.axes, LOSS].map((name) => [name, name]));
}

/** What the slices draw beside the trials. */
function describe(cuts) {
  const said = [...new Set(view.axes.map((name) => cuts[name]?.said).filter(Boolean))];
  const sentences = ["Loss against one axis, the others wherever they were.", "Dotted: the incumbent of the run."];
  sentences.push(said.length ? `Green: ${said.join("; ")}.` : "Points only: this view has no fitted model.");
  if (said.some((each) => each.startsWith("cut"))) {
    sentences.push("Where the model holds, trials lie above a cut by what their other axes cost.");
  }
  part("model").textContent = sentences.join(" ");
}

function brush(name, range) {
  if (range) view.brushes.set(name, range);
  else view.brushes.delete(name);
  reselect();
}

/** Opens the fields of an axis with its brush. */
function pick(name) {
  part("axis").value = name;
  fill(name);
  part("from").focus();
}

function fill(name) {
  const range = view.brushes.get(name) ?? [-Infinity, Infinity];
  const scale = scaleOf(name, scope);
  [part("from").value, part("to").value] = range.map((place) => (bounded(place) ? six(valueAt(scale, place)) : ""));
}

const bounded = (place) => Math.abs(place) < Number.MAX_VALUE;

function mark(row, turned) {
  view.marked = view.marked.includes(row) ? view.marked.filter((each) => each !== row) : [...view.marked, row];
  lines.mark(view.marked);
  panels.select(selected, view.marked);
  table.mark(view.marked, turned);
  part("body").querySelector(`[data-hash="${CSS.escape(values("hash")[row])}"] button`)?.focus({ preventScroll: true });
}

function chips() {
  part("brushes").replaceChildren(
    ...[...view.brushes].map(([name, range]) => {
      const scale = scaleOf(name, scope);
      const [low, high] = range.map((place) => (bounded(place) ? short(valueAt(scale, place)) : ""));
      const text = low && high ? `${low} to ${high}` : low ? `from ${low}` : high ? `to ${high}` : "all";
      const lost = name === LOSS && range[1] === Infinity && scope.ended.length < scope.rows.length;
      const said = lost ? `${text} and diverged` : text;
      const chip = make("button", { type: "button" }, `${name} ${said} ✕`);
      chip.ariaLabel = `Remove the brush on ${name}: ${said}`;
      chip.addEventListener("click", () => brush(name, null));
      return chip;
    }),
  );
}

function options(select, pairs) {
  const before = select.value;
  select.replaceChildren(...pairs.map(([value, text]) => make("option", { value }, text)));
  if (pairs.some(([value]) => value === before)) select.value = before;
}

function boxes() {
  part("chosen").textContent = `Axes: ${view.axes.length} of ${scope.axes.length} that vary`;
  part("boxes").replaceChildren(
    ...scope.axes.map(({ name, explains }) => {
      const box = make("input", { type: "checkbox", checked: view.axes.includes(name) });
      box.addEventListener("change", () => {
        const wanted = (each) => (each === name ? box.checked : view.axes.includes(each));
        show(scope.axes.map((axis) => axis.name).filter(wanted));
      });
      return make("label", {}, box, make("code", {}, name), ` ${Math.round(100 * explains)} %`);
    }),
  );
}

function show(axes) {
  view.axes = axes;
  for (const box of part("boxes").querySelectorAll("input")) box.checked = axes.includes(box.nextSibling.textContent);
  part("chosen").textContent = `Axes: ${axes.length} of ${scope.axes.length} that vary`;
  redraw();
}

function kinds() {
  const found = kindsOf(view.stage);
  const all = found.length > 1 ? [["", "all, though losses do not compare"]] : [];
  options(part("alike"), [...found.map(({ key, text, trials }) => [key, `${text} (${count(trials)})`]), ...all]);
  part("alike").value = view.alike = found[0].key;
}

/** Limits hold what reads the same as they do at four digits. */
function limits() {
  const scale = scaleOf(part("axis").value, scope);
  const read = (name, open, sign) => {
    const text = part(name).value.trim().replace("−", "-");
    const value = Number(text);
    if (text === "") return open;
    if (!Number.isFinite(value) || (scale.log && value <= 0)) throw new Error(`${text} is no value of ${scale.name}`);
    return scale.log ? Math.log2(value) + sign * 7e-4 : value + sign * 5e-4 * Math.abs(value);
  };
  return [read("from", -Infinity, -1), read("to", Infinity, 1)];
}

function listen() {
  part("stage").addEventListener("change", () => {
    view.stage = part("stage").value;
    kinds();
    rescope();
  });
  for (const name of ["alike", "measure"]) {
    part(name).addEventListener("change", () => {
      view[name] = part(name).value;
      rescope();
    });
  }
  part("best").addEventListener("input", () => {
    view.best = Number(part("best").value);
    reselect();
  });
  part("search").addEventListener("input", () => {
    view.words = part("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    reselect();
  });
  part("clear").addEventListener("click", () => {
    view.brushes.clear();
    Object.assign(view, { best: 100, words: [], marked: [] });
    [part("best").value, part("search").value] = [100, ""];
    lines.mark([]);
    table.mark([], false);
    reselect();
  });
  part("few").addEventListener("click", () => show(scope.axes.slice(0, data.shown).map((axis) => axis.name)));
  part("all").addEventListener("click", () => show(scope.axes.map((axis) => axis.name)));
  part("axis").addEventListener("change", () => fill(part("axis").value));
  part("numbers").addEventListener("submit", (event) => {
    event.preventDefault();
    part("refused").textContent = "";
    try {
      brush(part("axis").value, limits());
    } catch (error) {
      part("refused").textContent = error.message;
    }
  });
  const save = (name, rows) => saveText(`${explorer.dataset.file}-${name}.csv`, csv(rows));
  part("save-selected").addEventListener("click", () => save("selected-trials", table.rows()));
  part("save-all").addEventListener("click", () => save("trials", everything));
  document.addEventListener("themechange", () => redraw());
  addEventListener("beforeprint", () => redraw(true));
  let width = explorer.clientWidth;
  new ResizeObserver(() => {
    if (explorer.clientWidth === width) return;
    width = explorer.clientWidth;
    redraw();
  }).observe(explorer);
}

explorer.hidden = false;
const stageOptions = data.stages.map(({ key, title }) => [key, `${key}: ${title}`]);
options(part("stage"), [...stageOptions, ...(stageOptions.length > 1 ? [["", "all stages"]] : [])]);
part("stage").value = view.stage;
kinds();
rescope();
listen();
