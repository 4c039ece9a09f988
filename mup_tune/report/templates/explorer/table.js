// The table of selected trials: sorted by any column, a page at a time.
const ROWS = 20;

/** ``marked(row)`` is told of a hash that is pressed. */
function trialTable(part, marked) {
  const sort = { name: "", down: false };
  let columns = [];
  let rows = [];
  let sorted = [];
  let page = 0;
  let marks = [];

  const pages = () => Math.max(1, Math.ceil(sorted.length / ROWS));

  function order() {
    const column = columns.find((each) => each.name === sort.name);
    sorted = column ? [...rows].sort(by(column.at, sort.down)) : rows;
  }

  /** What is no number comes last either way, and ties stay in the order of losses. */
  function by(at, down) {
    const rank = (value) => (typeof value === "number" && !Number.isFinite(value) ? 1 : 0);
    return (a, b) => {
      const [first, second] = [at[a], at[b]];
      if (rank(first) !== rank(second)) return rank(first) - rank(second);
      return first === second || rank(first) ? 0 : first < second === down ? 1 : -1;
    };
  }

  function head() {
    const cells = columns.map((column) => {
      const button = make("button", { type: "button" }, column.label);
      button.addEventListener("click", () => {
        Object.assign(sort, { name: column.name, down: sort.name === column.name && !sort.down });
        page = 0;
        head();
        part("head").querySelector(`[data-column="${column.name}"] button`).focus();
        body();
      });
      const sign = sort.name !== column.name ? "none" : sort.down ? "descending" : "ascending";
      const cell = make("th", { scope: "col", ariaSort: sign, className: column.number ? "n" : "" }, button);
      cell.dataset.column = column.name;
      return cell;
    });
    part("head").replaceChildren(make("tr", {}, ...cells));
  }

  function body() {
    order();
    page = Math.min(Math.max(page, 0), pages() - 1);
    const shown = sorted.slice(page * ROWS, (page + 1) * ROWS);
    part("body").replaceChildren(...shown.map(line));
    const nothing = () => make("tr", {}, make("td", { colSpan: columns.length }, "No trial is selected."));
    if (!shown.length) part("body").append(nothing());
    part("page").value = page + 1;
    part("page").max = pages();
    part("pages").textContent = `of ${count(pages())}`;
    part("back").disabled = page === 0;
    part("next").disabled = page === pages() - 1;
  }

  function line(row) {
    const cells = columns.map((column, index) => {
      const value = column.at[row];
      const text = typeof value !== "number" ? value : Number.isFinite(value) ? column.text(value) : "–";
      const kind = column.number ? "n" : column.name === "reason" ? "why" : "";
      if (index) return make("td", { className: kind, title: column.number ? "" : text }, text);
      const pressed = String(marks.includes(row));
      const button = make("button", { type: "button", ariaPressed: pressed }, make("code", {}, text));
      button.addEventListener("click", () => marked(row));
      return make("th", { scope: "row" }, button);
    });
    const made = make("tr", { className: marks.includes(row) ? "moved" : "" }, ...cells);
    made.dataset.hash = values("hash")[row];
    return made;
  }

  const turn = (to) => {
    page = to;
    body();
  };
  part("back").addEventListener("click", () => turn(page - 1));
  part("next").addEventListener("click", () => turn(page + 1));
  part("page").addEventListener("change", () => turn(Math.round(Number(part("page").value) || 1) - 1));

  return {
    /** Columns that fit a scope and the axes shown. */
    show(scope, axes) {
      const number = (name, at, text = short, label = name) => ({ name, label, at, number: true, text });
      const text = (name) => ({ name, label: name, at: values(name), number: name === "seed", text: String });
      const fixed = (digits) => (value) => value.toFixed(digits).replace("-", "−");
      columns = [
        text("hash"), text("stage"), text("settings"), text("seed"), text("status"),
        number("loss", values("loss"), fixed(4)), number("loss_se", values("loss_se"), fixed(4), "loss SE"),
        ...(scope.unit === "mnat/token" ? [number("relative", scope.y, fixed(1), "above seed, mnat")] : []),
        ...(scope.mixed ? [text("shape"), number("tokens", values("total_tokens"), count)] : []),
        ...axes.filter((name) => name !== "total_tokens").map((name) => number(name, values(name))),
        text("reason"),
      ];
      if (!columns.some((column) => column.name === sort.name)) sort.name = "";
      head();
    },
    select(newRows) {
      [rows, page] = [newRows, 0];
      body();
    },
    /** Marks rows, and turns to the page of the last one if it is selected. */
    mark(newMarks, turned) {
      marks = newMarks;
      const place = turned ? sorted.indexOf(marks.at(-1)) : -1;
      if (place >= 0) page = Math.floor(place / ROWS);
      body();
    },
    rows: () => sorted,
  };
}
