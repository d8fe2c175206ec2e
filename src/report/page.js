"use strict";
// All data are in the page; nothing is fetched. Text of runs and models is only ever set as textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d"];
const color = (i) => COLORS[i % COLORS.length];
const NS = "http://www.w3.org/2000/svg";
const state = { x: "tokens" };

function make(parent, tag, attributes = {}, text) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
function draw(parent, tag, attributes) {
  const node = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.append(node);
  return node;
}
const short = (v) => {
  if (v === 0) return "0";
  const a = Math.abs(v);
  if (a >= 1e9) return +(v / 1e9).toPrecision(3) + "G";
  if (a >= 1e6) return +(v / 1e6).toPrecision(3) + "M";
  if (a >= 1e4) return +(v / 1e3).toPrecision(3) + "k";
  return a < 1e-3 ? v.toExponential(1) : String(+v.toPrecision(4));
};

// ---------------------------------------------------------------------------------------------------------------------
// Charts. A series is {run, name, points: [{step, tokens, y, low, high}], dash, bars, band}.

function ticks(low, high, log) {
  if (log) {
    const out = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      for (const m of [1, 2, 5]) {
        const v = m * 10 ** e;
        if (v >= low && v <= high) out.push(v);
      }
    }
    return out.length > 8 ? out.filter((v) => Math.log10(v) % 1 === 0) : out;
  }
  const raw = (high - low) / 5;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= raw);
  const out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step / 1e6; v += step) out.push(v);
  return out;
}

// The range of most values: single spikes must not flatten the rest.
function extent(values, log) {
  const sorted = values.filter((v) => Number.isFinite(v) && (!log || v > 0)).sort((a, b) => a - b);
  if (!sorted.length) return [log ? 0.1 : 0, 1];
  const at = (q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
  let [low, high] = [sorted[0], sorted[sorted.length - 1]];
  const body = at(0.98) - at(0.02);
  if (!log && high - at(0.98) > 3 * body && body > 0) high = at(0.98) + body / 2;
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - Math.abs(low) / 10 - 1e-9, high + Math.abs(high) / 10 + 1e-9];
  const pad = log ? 0 : (high - low) * 0.04;
  return [low - pad, high + pad];
}

const charts = [];
function chart(parent, title, series, options = {}) {
  series = series.filter((s) => s.points.length);
  if (!series.length) return;
  const figure = make(parent, "figure");
  make(figure, "figcaption", {}, title);
  const svg = draw(figure, "svg", { role: "img", tabindex: 0 });
  const read = make(figure, "div", { class: "read", "aria-live": "polite" });
  const c = { title, series, options, svg, read, at: null };
  svg.addEventListener("pointermove", (e) => hover(c, e.clientX));
  svg.addEventListener("pointerleave", () => { c.at = null; paint(c); });
  svg.addEventListener("keydown", (e) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[e.key];
    if (move === undefined) return;
    e.preventDefault();
    const points = c.series[0].points;
    const now = c.at === null ? points.length - 1 : nearest(points, c.at);
    c.at = points[Math.max(0, Math.min(points.length - 1, now + move))][state.x];
    paint(c);
  });
  charts.push(c);
}

const nearest = (points, x) => {
  let best = 0;
  points.forEach((p, i) => { if (Math.abs(p[state.x] - x) < Math.abs(points[best][state.x] - x)) best = i; });
  return best;
};

function hover(c, clientX) {
  const box = c.svg.getBoundingClientRect();
  const share = (clientX - box.left - 48) / (box.width - 60);
  c.at = c.range[0] + Math.max(0, Math.min(1, share)) * (c.range[1] - c.range[0]);
  paint(c);
}

function paint(c) {
  const { svg, series, options } = c;
  svg.replaceChildren();
  const width = svg.clientWidth || 500, height = svg.clientHeight || 260, left = 48, right = 12, top = 10, bottom = 24;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const xs = series.flatMap((s) => s.points.map((p) => p[state.x]));
  const ys = series.flatMap((s) => s.points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]));
  if (options.floor) ys.push(options.floor);
  const [x0, x1] = [Math.min(...[0, ...xs.slice(0, 1)]), xs.reduce((a, b) => Math.max(a, b), 1e-9)];
  const [y0, y1] = extent(ys, options.log);
  c.range = [x0, x1];
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const ly = (y) => (options.log ? Math.log(Math.max(y, 1e-30)) : y);
  const py = (y) => height - bottom - ((ly(y) - ly(y0)) / (ly(y1) - ly(y0))) * (height - top - bottom);
  for (const v of ticks(y0, y1, options.log)) {
    draw(svg, "line", { class: "grid", x1: left, x2: width - right, y1: py(v), y2: py(v) });
    draw(svg, "text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }).textContent = short(v);
  }
  for (const v of ticks(x0, x1, false)) {
    draw(svg, "text", { x: px(v), y: height - 6, "text-anchor": "middle" }).textContent = short(v);
  }
  const clip = `clip-${charts.indexOf(c)}`;
  draw(draw(draw(svg, "defs", {}), "clipPath", { id: clip }), "rect", { x: left, y: top, width: width - left - right, height: height - top - bottom });
  const plot = draw(svg, "g", { "clip-path": `url(#${clip})` });
  data.runs.forEach((run) => run.events.filter((e) => e.marked && e[state.x] <= x1).forEach((e) => {
    const line = draw(plot, "line", { class: "event", x1: px(e[state.x]), x2: px(e[state.x]), y1: top, y2: height - bottom });
    draw(line, "title", {}).textContent = `${run.name}, step ${e.step}: ${e.text}`;
  }));
  if (options.floor) draw(plot, "line", { x1: left, x2: width - right, y1: py(options.floor), y2: py(options.floor), stroke: "currentColor", "stroke-dasharray": "6 4" });
  for (const s of series) {
    const stroke = s.color ?? color(s.run);
    if (s.band) {
      const up = s.points.map((p) => `${px(p[state.x])},${py(p.high)}`), down = s.points.map((p) => `${px(p[state.x])},${py(p.low)}`).reverse();
      // Of single steps the band is a line.
      draw(plot, "polygon", { points: [...up, ...down].join(" "), fill: stroke, "fill-opacity": 0.18, stroke, "stroke-opacity": 0.25 });
    }
    // A point that is not a number interrupts the line.
    let path = "", open = false;
    for (const p of s.points) {
      if (!Number.isFinite(p.y)) { open = false; continue; }
      path += `${open ? "L" : "M"}${px(p[state.x])},${py(p.y)}`;
      open = true;
    }
    draw(plot, "path", { d: path, fill: "none", stroke, "stroke-width": s.dash ? 2 : 1.5, "stroke-dasharray": s.dash || "none" });
    if (s.bars || s.points.length === 1) for (const p of s.points) {
      draw(plot, "circle", { cx: px(p[state.x]), cy: py(p.y), r: 3, fill: stroke });
      if (p.low !== undefined) draw(plot, "line", { x1: px(p[state.x]), x2: px(p[state.x]), y1: py(p.low), y2: py(p.high), stroke });
    }
  }
  const last = series.map((s) => `${s.name} ${short(s.points[s.points.length - 1].y)}`).join(", ");
  svg.setAttribute("aria-label", `${c.title} against ${state.x}; last: ${last}`);
  if (c.at === null) { legend(c, (s) => s.points[s.points.length - 1]); return; }
  draw(svg, "line", { class: "cross", x1: px(c.at), x2: px(c.at), y1: top, y2: height - bottom });
  legend(c, (s) => s.points[nearest(s.points, c.at)]);
}

function legend(c, pick) {
  c.read.replaceChildren();
  for (const s of c.series) {
    const p = pick(s), item = make(c.read, "span");
    make(item, "span", { class: "key", style: `background:${s.color ?? color(s.run)}${s.dash ? ";opacity:.55" : ""}` });
    item.append(`${s.name}: ${Number.isFinite(p.y) ? short(p.y) : "refused"} (step ${p.step})  `);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// What is shown.

const many = data.runs.length > 1;
const label = (run, text) => (many ? `${run.name} ${text}` : text);
const points = (run, key, more = () => ({})) =>
  run.train.step.map((step, i) => ({ step, tokens: run.train.tokens[i], y: run.train[key][i] ?? NaN, ...more(i) }));
const of = (key, text) => data.runs.map((run, r) => ({ run: r, name: label(run, text), points: run.train.step.length ? points(run, key) : [] }));
const vals = (key, text) => data.runs.map((run, r) => ({
  run: r, name: label(run, text), dash: "5 3", bars: true,
  points: run.val.filter((v) => v[key] !== null).map((v) => ({ step: v.step, tokens: v.seen, y: v[key] })),
}));

function curves() {
  const parent = document.getElementById("charts");
  const smooth = data.runs.map((run, r) => ({
    run: r, name: label(run, "training"), band: true,
    points: points(run, "smooth", (i) => ({ low: run.train.low[i] ?? NaN, high: run.train.high[i] ?? NaN })).filter((p) => Number.isFinite(p.low)),
  }));
  chart(parent, "Loss, nats per token (line: smoothed; band: all steps)", [...smooth, ...vals("loss", "validation")]);
  const floor = data.runs.map((run) => run.val.map((v) => v.floor_bits_per_byte).find((f) => f)).find((f) => f);
  chart(parent, `Validation, bits per byte${floor ? " (dashed: the exact floor)" : ""}`, vals("bits_per_byte", "validation"), { floor });
  chart(parent, "Learning rate", of("lr", "rate"));
  chart(parent, "Gradient norm before clipping", of("grad_norm", "norm"), { log: true });
  chart(parent, "Tokens per second", of("tokens_per_second", "speed"));
  chart(parent, "Share of a step spent waiting for data", of("data_share", "share"));
}

// One line for each layer of a run, dark to bright from the bottom up; of many layers some.
function layers() {
  for (const run of data.runs) {
    if (!run.layers.length) continue;
    const names = run.layers[0].names, every = Math.ceil(names.length / 12);
    const chosen = names.map((name, i) => [name, i]).filter(([, i]) => i % every === 0 || i === names.length - 1);
    const lines = (value) => chosen.map(([name, i]) => ({
      run: 0, name, color: `hsl(${(280 * i) / names.length}, 65%, 50%)`,
      points: run.layers.map((l) => ({ step: l.step, tokens: l.seen, y: value(l, i) })),
    }));
    const parent = document.getElementById("charts");
    chart(parent, label(run, "update / weight, by layer"), lines((l, i) => l.update_norm[i] / l.weight_norm[i]), { log: true });
    chart(parent, label(run, "gradient norm, by layer"), lines((l, i) => l.grad_norm[i]), { log: true });
  }
}

function evaluations() {
  const names = [...new Set(data.runs.flatMap((run) => run.evals.map((e) => `${e.task} · ${e.metric}`)))];
  if (!names.length) return;
  document.getElementById("evaluations").hidden = false;
  const parent = document.getElementById("eval-charts");
  for (const name of names) {
    chart(parent, name, data.runs.map((run, r) => ({
      run: r, name: label(run, "score"), bars: true,
      points: run.evals.filter((e) => `${e.task} · ${e.metric}` === name).map((e) => ({
        step: e.step, tokens: e.seen, y: e.value ?? NaN,
        ...(e.stderr ? { low: e.value - e.stderr, high: e.value + e.stderr } : {}),
      })),
    })));
  }
}

function samples() {
  const section = document.getElementById("samples");
  for (const run of data.runs) {
    const prompts = [...new Set(run.samples.map((s) => s.prompt))];
    if (!prompts.length) continue;
    section.hidden = false;
    const box = make(section, "div");
    const bar = make(box, "div", { class: "bar" });
    const select = make(bar, "select", { "aria-label": `Prompt of ${run.name}` });
    prompts.forEach((p, i) => make(select, "option", { value: i }, label(run, p.length > 70 ? p.slice(0, 70) + "…" : p || "(nothing)")));
    const slider = make(bar, "input", { type: "range", min: 0, step: 1, "aria-label": "Step" });
    const at = make(bar, "output", { class: "dim" });
    const text = make(box, "pre", { tabindex: 0 });
    const show = () => {
      const mine = run.samples.filter((s) => s.prompt === prompts[select.value]);
      slider.max = mine.length - 1;
      const s = mine[Math.min(slider.value, mine.length - 1)];
      at.textContent = `step ${s.step}`;
      slider.setAttribute("aria-valuetext", `step ${s.step}`);
      text.replaceChildren();
      make(text, "b", {}, s.prompt);
      text.append(s.text);
    };
    slider.max = run.samples.length;
    slider.value = run.samples.length;
    select.addEventListener("change", show);
    slider.addEventListener("input", show);
    show();
  }
}

function table(parent, head, rows) {
  const t = make(make(parent, "div", { class: "scroll" }), "table");
  const tr = make(make(t, "thead"), "tr");
  head.forEach((h) => make(tr, "th", { scope: "col" }, h));
  const body = make(t, "tbody");
  rows.forEach((row) => { const r = make(body, "tr"); row.forEach((cell) => make(r, "td", {}, cell ?? "")); });
}

function tables() {
  const events = data.runs.flatMap((run) => run.events.map((e) => [...(many ? [run.name] : []), e.time, e.step, e.kind, e.text]));
  table(document.getElementById("events"), [...(many ? ["run"] : []), "time", "step", "event", "details"], events);
  const names = data.runs.map((run) => run.name);
  if (many) {
    const section = document.getElementById("differences");
    section.hidden = false;
    if (data.differences.length) table(section, ["key", ...names], data.differences.map((d) => [d.key, ...d.values]));
    else make(section, "p", {}, "The configurations are the same.");
  }
  const builds = [...new Set(data.runs.flatMap((run) => Object.keys(run.build)))];
  table(document.getElementById("builds"), ["", ...names], builds.map((key) => [key, ...data.runs.map((run) => run.build[key])]));
  for (const run of data.runs) {
    const details = make(document.getElementById("configs"), "details");
    make(details, "summary", {}, run.name);
    table(details, ["key", "value"], Object.entries(run.config));
  }
}

function repaint() { charts.forEach(paint); }
curves();
layers();
evaluations();
samples();
tables();
document.getElementById("x").addEventListener("change", (e) => { state.x = e.target.value; charts.forEach((c) => { c.at = null; }); repaint(); });
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
new ResizeObserver(repaint).observe(document.body);
repaint();
