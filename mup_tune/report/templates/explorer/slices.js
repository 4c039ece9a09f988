// Slices: every trial's loss against one axis, a panel an axis, with the line of the stage's model.
const PANEL = { height: 190, left: 50, right: 12, top: 18, bottom: 24 };
const LOWEST = PANEL.height - PANEL.bottom - 4; // px, of the lowest loss

/** ``clicked(row)`` is told of a point that is pressed. */
function slicePanels(root, clicked) {
  const tip = make("div", { className: "tip", hidden: true });
  let panels = [];
  let scope = null;
  let inks = null;
  let job = 0;

  const inside = (panel, place) => panel.x0 + (place - panel.lo) * panel.perPlace;
  const level = (loss) => LOWEST - ((loss - scope.low) / (scope.top - scope.low)) * (LOWEST - PANEL.top);
  const held = (loss) => (loss === Infinity ? PANEL.top / 2 : level(Math.min(loss, scope.top)));
  const pointOf = (panel, row) => [inside(panel, panel.scale.at[row]), held(scope.y[row])];

  function panelOf(scale, cut) {
    const canvas = make("canvas", { role: "img" });
    const kind = make("span", { className: "values" }, scale.kind);
    const caption = make("figcaption", {}, make("code", {}, scale.name), kind);
    const figure = root.appendChild(make("figure", {}, caption, canvas));
    const panel = { scale, cut, canvas, behind: make("canvas"), width: figure.clientWidth - 28, drawn: false };
    const pad = 0.04 * (scale.hi - scale.lo) || 0.5;
    Object.assign(panel, { lo: scale.lo - pad, x0: PANEL.left });
    panel.perPlace = (panel.width - PANEL.left - PANEL.right) / (scale.hi - scale.lo + 2 * pad);
    canvas.ariaLabel = `Loss against ${scale.name}, ${plural(scope.rows.length, "trial")}. The table has the numbers.`;
    canvas.addEventListener("pointermove", (event) => hover(panel, event));
    canvas.addEventListener("pointerleave", () => (tip.hidden = true));
    canvas.addEventListener("click", (event) => {
      const row = nearest(panel, event);
      if (row !== null) clicked(row);
    });
    return panel;
  }

  function nearest(panel, event) {
    const box = panel.canvas.getBoundingClientRect();
    let [best, least] = [null, 14 ** 2];
    for (const row of scope.rows) {
      const [x, y] = pointOf(panel, row);
      const away = (x - event.clientX + box.left) ** 2 + (y - event.clientY + box.top) ** 2;
      if (away < least) [best, least] = [row, away];
    }
    return best;
  }

  function hover(panel, event) {
    const row = nearest(panel, event);
    tip.hidden = row === null;
    panel.canvas.style.cursor = row === null ? "" : "pointer";
    if (row === null) return;
    const loss = scope.y[row] === Infinity ? "diverged" : `loss ${short(scope.y[row])} ${scope.unit}`;
    const value = `${panel.scale.name} ${short(values(panel.scale.name)[row])}`;
    tip.textContent = `${values("hash")[row]} · ${value} · seed ${values("seed")[row]} · ${loss}`;
    const box = root.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX - box.left + 12, box.width - tip.offsetWidth)}px`;
    tip.style.top = `${event.clientY - box.top + 16}px`;
  }

  /** What no selection changes: the frame, every trial in grey, and the model. */
  function drawBehind(panel) {
    const context = cleared(panel.behind, panel.width, PANEL.height);
    context.font = "11px system-ui, sans-serif";
    frame(panel, context);
    context.fillStyle = inks.other;
    for (const row of scope.rows) dot(panel, context, row);
    if (panel.cut) model(panel, context, panel.cut);
    panel.drawn = true;
  }

  function draw(panel, selected, marked) {
    if (!panel.drawn) drawBehind(panel);
    const context = cleared(panel.canvas, panel.width, PANEL.height);
    context.drawImage(panel.behind, 0, 0, panel.width, PANEL.height);
    context.font = "11px system-ui, sans-serif";
    let ink = "";
    for (let index = selected.length - 1; index >= 0; index--) {
      if (ink !== (ink = inkOf(selected[index], scope, inks))) context.fillStyle = ink;
      dot(panel, context, selected[index]);
    }
    Object.assign(context, { strokeStyle: inks.ink, lineWidth: 2 });
    for (const row of marked) {
      context.beginPath();
      context.arc(...pointOf(panel, row), 6, 0, 7);
      context.stroke();
    }
  }

  /** A square a trial, a cross at the top edge for one that diverged. */
  function dot(panel, context, row) {
    const size = scope.rows.length > 2000 ? 2 : 3;
    const [x, y] = pointOf(panel, row);
    if (scope.y[row] < Infinity) context.fillRect(x - size / 2, y - size / 2, size, size);
    else context.fillText("✕", x - 4, y + 4);
  }

  function frame(panel, context) {
    const bottom = PANEL.height - PANEL.bottom;
    Object.assign(context, { strokeStyle: inks.line, fillStyle: inks.soft, lineWidth: 1, textAlign: "center" });
    let free = 0; // where the next label may begin
    for (const [place, text] of panel.scale.ticks) {
      const [x, half] = [inside(panel, place), context.measureText(text).width / 2];
      segment(context, x, PANEL.top, x, bottom);
      if (x - half < free) continue;
      context.fillText(text, x, bottom + 14);
      free = x + half + 6;
    }
    context.textAlign = "right";
    for (const [place, text] of scaleOf(LOSS, scope).ticks) {
      segment(context, PANEL.left, level(place), panel.width - PANEL.right, level(place));
      context.fillText(text, PANEL.left - 5, level(place) + 4);
    }
    const best = Math.log2(data.incumbent[panel.scale.name]);
    if (best >= panel.scale.lo - 1e-4 && best <= panel.scale.hi + 1e-4) {
      Object.assign(context, { strokeStyle: inks.ink, fillStyle: inks.ink, textAlign: "center" });
      context.setLineDash([2, 3]);
      segment(context, inside(panel, best), PANEL.top, inside(panel, best), bottom);
      context.setLineDash([]);
      context.fillText("◆", inside(panel, best), bottom + 4);
    }
    context.textAlign = "left";
  }

  function segment(context, x0, y0, x1, y1) {
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
  }

  /** The model's line with its band, and its optimum with the CI; clipped to the panel. */
  function model(panel, context, cut) {
    const [wide, high] = [panel.width - PANEL.left - PANEL.right, PANEL.height - PANEL.top - PANEL.bottom];
    const box = [PANEL.left, PANEL.top, wide, high];
    const x = (value) => inside(panel, Math.log2(value));
    const path = (at, losses) => at.forEach((value, index) => context.lineTo(x(value), level(losses[index])));
    context.save();
    context.beginPath();
    context.rect(...box);
    context.clip();
    Object.assign(context, { fillStyle: inks.c3, strokeStyle: inks.c3, lineWidth: 1.8 });
    if (cut.low.length) {
      context.beginPath();
      path(cut.at, cut.low);
      path([...cut.at].reverse(), [...cut.high].reverse());
      Object.assign(context, { globalAlpha: 0.22 }).fill();
    }
    if (cut.optimum) {
      const [best, low, high] = cut.optimum.map(x);
      Object.assign(context, { globalAlpha: 0.22 }).fillRect(low, box[1], high - low, box[3]);
      context.globalAlpha = 1;
      context.setLineDash([4, 3]);
      segment(context, best, box[1], best, box[1] + box[3]);
      context.setLineDash([]);
    }
    context.globalAlpha = 1;
    context.beginPath();
    path(cut.at, cut.loss);
    context.stroke();
    context.restore();
  }

  return {
    /** The axes and the trials; ``cuts`` are the lines of the stage's model by axis. ``select`` has to follow. */
    show(newScope, scales, cuts) {
      [scope, inks] = [newScope, inksOf(root)];
      root.replaceChildren(tip);
      panels = scales.map((scale) => panelOf(scale, cuts[scale.name]));
    },
    /** A panel a frame, so that a brush that is dragged never waits for all of them. */
    select(selected, marked, now = false) {
      cancelAnimationFrame(job);
      root.ariaBusy = "true";
      const waiting = [...panels];
      const frame = () => {
        for (const panel of waiting.splice(0, now ? Infinity : 1)) draw(panel, selected, marked);
        if (waiting.length) job = requestAnimationFrame(frame);
        else root.ariaBusy = "false";
      };
      frame();
    },
  };
}
