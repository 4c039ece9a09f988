// Canvases, the inks they share, and parallel coordinates: a line a trial, an upright a setting.
const LABELS = 74; // px above the uprights
const LOST = 26; // of the strip for trials that diverged
const PLOT = 250;
const SPACE = 92; // between uprights, at the least
const SIDES = [46, 62]; // beside the first and the last
const FRAME = 32; // ms: where frames take longer, fewer lines are drawn in the next one

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A canvas' context, cleared, in CSS px; a canvas of the same size is kept, for a new one is dear. */
function cleared(canvas, width, height) {
  const ratio = Math.min(devicePixelRatio || 1, 2);
  const [wide, high] = [Math.round(width * ratio), Math.round(height * ratio)];
  const context = canvas.getContext("2d");
  if (canvas.width !== wide || canvas.height !== high) {
    Object.assign(canvas, { width: wide, height: high });
    Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.globalCompositeOperation = "source-over";
  context.globalAlpha = 1;
  context.clearRect(0, 0, width, height);
  return context;
}

/** The page's colours as they are now, and the ramp of losses from the lowest to the highest. */
function inksOf(element) {
  const probe = element.appendChild(make("i"));
  const read = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const names = ["ink", "soft", "line", "other", "c2", "c3", "card", "ramp-low", "ramp-middle", "ramp-high"];
  const inks = Object.fromEntries(names.map((name) => [name, read(name)]));
  probe.remove();
  const stops = names.slice(-3).map((name) => inks[name].match(/[\d.]+/g).slice(0, 3).map(Number));
  inks.ramp = Array.from({ length: 65 }, (_, index) => {
    const [from, to, share] = index < 32 ? [stops[0], stops[1], index / 32] : [stops[1], stops[2], (index - 32) / 32];
    return `rgb(${from.map((each, part) => Math.round(each + share * (to[part] - each))).join(" ")})`;
  });
  return inks;
}

function inkOf(row, scope, inks) {
  const share = (scope.y[row] - scope.low) / (scope.pale - scope.low);
  return scope.y[row] === Infinity ? inks.c2 : inks.ramp[Math.round(64 * Math.min(1, Math.max(0, share)))];
}

/** ``brushed(name, range)`` is told of a brush as it is dragged, ``picked(name)`` of an axis whose name is pressed. */
function parallelCoordinates(root, brushed, picked) {
  const [others, chosen, marks] = [0, 1, 2].map(() => root.appendChild(make("canvas", { ariaHidden: "true" })));
  const height = LABELS + LOST + PLOT + 12;
  root.style.height = `${height}px`;
  for (const [name, size] of Object.entries({ labels: LABELS, lost: LOST, plot: PLOT })) {
    root.style.setProperty(`--${name}`, `${size}px`);
  }
  let scales = [];
  let uprights = [];
  let scope = null;
  let inks = null;
  let width = 0;
  let job = 0;
  let pace = 300; // lines a frame

  const x = (index) => SIDES[0] + (index * (width - SIDES[0] - SIDES[1])) / Math.max(1, scales.length - 1);
  const y = (scale, place) => {
    if (place === Infinity) return LABELS + LOST / 2;
    const share = scale.hi > scale.lo ? (place - scale.lo) / (scale.hi - scale.lo) : 0.5;
    return LABELS + LOST + PLOT * (1 - Math.min(1, Math.max(0, share)));
  };

  function line(context, row) {
    context.beginPath();
    scales.forEach((scale, index) => context.lineTo(x(index), y(scale, scale.at[row])));
    context.stroke();
  }

  /** Lines in the order of rows, later ones below, as many a frame as the browser keeps up with. */
  function paint(rows, now) {
    cancelAnimationFrame(job);
    root.ariaBusy = "true";
    const context = cleared(chosen, width, height);
    context.globalCompositeOperation = "destination-over";
    context.lineJoin = "round";
    context.lineWidth = rows.length > 2000 ? 0.8 : 1.2;
    context.globalAlpha = rows.length > 2000 ? 0.45 : rows.length > 200 ? 0.7 : 0.9;
    let [done, ink, before] = [0, "", 0];
    const frame = () => {
      const time = performance.now();
      if (before) pace = Math.min(2000, Math.max(40, pace * (time - before > FRAME ? 0.6 : 1.25)));
      before = time;
      const end = Math.min(rows.length, now ? Infinity : done + Math.round(pace));
      for (; done < end; done++) {
        if (ink !== (ink = inkOf(rows[done], scope, inks))) context.strokeStyle = ink;
        line(context, rows[done]);
      }
      if (done < rows.length) job = requestAnimationFrame(frame);
      else root.ariaBusy = "false";
    };
    frame();
  }

  function upright(scale, index) {
    const breakable = scale.name.split(/(?<=[._])/).flatMap((each) => [each, make("wbr")]);
    const name = make("button", { type: "button", className: "name", title: `Brush ${scale.name} by number` });
    name.append(make("span", {}, ...breakable), make("small", {}, scale.kind));
    name.addEventListener("click", () => picked(scale.name));
    const zone = make("div", { className: "zone" });
    const brush = zone.appendChild(make("div", { className: "brush", hidden: true }));
    const made = make("div", { className: "upright" }, name, make("div", { className: "rule" }), zone);
    made.dataset.axis = scale.name;
    made.style.left = `${x(index)}px`;
    const cut = scale.name === LOSS && scope.high > scope.top;
    if (cut) tick(made, LABELS + LOST, `≥ ${short(scope.top)}`, "end");
    for (const [place, text] of scale.ticks) {
      if (!cut || y(scale, place) > LABELS + LOST + 12) tick(made, y(scale, place), text);
    }
    if (scale.name === LOSS && scope.ended.length < scope.rows.length) tick(made, LABELS + LOST / 2, "diverged", "end");
    const best = data.incumbent[scale.name];
    if (best !== undefined) {
      const place = Math.log2(best);
      if (place >= scale.lo - 1e-4 && place <= scale.hi + 1e-4) tick(made, y(scale, place), "◆", "incumbent");
    }
    dragging(zone, scale, brush);
    return { scale, made, brush };
  }

  function tick(made, top, text, kind = "") {
    const label = made.appendChild(make("span", { className: `tick ${kind}` }, text));
    label.style.top = `${top}px`;
  }

  /** A drag beside the brush makes a new one, one inside moves it, one at an end moves the end; a click clears. */
  function dragging(zone, scale, brush) {
    let held = null;
    const share = (event) => 1 - (event.clientY - zone.getBoundingClientRect().top - LOST) / PLOT;
    // An end of the scale is no limit, and what diverged lies beyond the upper one.
    const at = (place) => {
      if (place <= 0) return -Infinity;
      if (place >= 1) return place > 1 + LOST / PLOT / 3 ? Infinity : Number.MAX_VALUE;
      return scale.lo + place * (scale.hi - scale.lo);
    };
    zone.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      const began = share(event);
      held = { began, moved: false, ends: [began, began], grip: null };
      if (!brush.hidden) {
        const [low, high] = brush.shares;
        const near = 6 / PLOT;
        if (Math.abs(began - low) < near) held.began = high;
        else if (Math.abs(began - high) < near) held.began = low;
        else if (began > low && began < high) held.grip = [low - began, high - began];
      }
      zone.setPointerCapture(event.pointerId);
      event.preventDefault();
    });
    zone.addEventListener("pointermove", (event) => {
      if (!held) return;
      const now = share(event);
      held.moved ||= Math.abs(now - held.began) * PLOT > 3;
      if (!held.moved) return;
      const ends = held.grip ? held.grip.map((each) => each + now) : [held.began, now].sort((a, b) => a - b);
      brushed(scale.name, ends.map(at));
    });
    zone.addEventListener("pointerup", () => {
      if (held && !held.moved && !held.grip) brushed(scale.name, null);
      held = null;
    });
    zone.addEventListener("pointercancel", () => (held = null));
  }

  return {
    /** The axes and the trials behind; ``select`` has to follow. */
    show(newScope, newScales) {
      [scope, scales, inks] = [newScope, newScales, inksOf(root)];
      width = Math.max(root.parentElement.clientWidth, SPACE * scales.length + 16);
      root.style.width = `${width}px`;
      for (const each of uprights) each.made.remove();
      uprights = scales.map(upright);
      root.append(...uprights.map((each) => each.made));
      const context = cleared(others, width, height);
      context.strokeStyle = inks.other;
      context.lineWidth = 0.6;
      const every = Math.ceil(scope.rows.length / 3000); // beyond it more lines only fill the same grey
      for (let index = 0; index < scope.rows.length; index += every) line(context, scope.rows[index]);
    },
    select(rows, brushes, now = false) {
      for (const { scale, brush } of uprights) {
        const range = brushes.get(scale.name);
        brush.hidden = !range;
        if (!range) continue;
        const shareOf = (place) => Math.min(1, Math.max(0, (place - scale.lo) / (scale.hi - scale.lo || 1)));
        const [low, high] = range.map((place) => (place === Infinity ? 1 + LOST / PLOT : shareOf(place)));
        brush.shares = [low, high];
        brush.style.top = `${LOST + PLOT * (1 - high)}px`;
        brush.style.height = `${Math.max(2, PLOT * (high - low))}px`;
      }
      paint(rows, now);
    },
    mark(rows) {
      const context = cleared(marks, width, height);
      context.lineJoin = "round";
      for (const [ink, thick] of [[inks.card, 6], [inks.ink, 2.5]]) {
        Object.assign(context, { strokeStyle: ink, lineWidth: thick });
        for (const row of rows) line(context, row);
      }
    },
  };
}
