"use strict";
// All data are in the page; nothing is fetched. Text of runs and models is only ever set as textContent.
const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d", "#92400e", "#475569", "#c026d3", "#0f766e"];
const color = (i) => COLORS[i % COLORS.length];
const NS = "http://www.w3.org/2000/svg";
const state = { x: "tokens", scores: "" };

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
// Charts. A series is {run, name, points: [{step, tokens, y, low, high}], dash, bars, band}. The key of a point that is its place on the
// axis is the page's, or that of options.x.

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
    const now = c.at === null ? points.length - 1 : nearest(c, points, c.at);
    c.at = points[Math.max(0, Math.min(points.length - 1, now + move))][axis(c)];
    paint(c);
  });
  charts.push(c);
}

const axis = (c) => c.options.x?.() || state.x;
const nearest = (c, points, x) => {
  const key = axis(c);
  let best = 0;
  points.forEach((p, i) => { if (Math.abs(p[key] - x) < Math.abs(points[best][key] - x)) best = i; });
  return best;
};

function hover(c, clientX) {
  const box = c.svg.getBoundingClientRect();
  const share = (clientX - box.left - 48) / (box.width - 60);
  c.at = c.range[0] + Math.max(0, Math.min(1, share)) * (c.range[1] - c.range[0]);
  paint(c);
}

function paint(c) {
  const { svg, series, options } = c, key = axis(c);
  svg.replaceChildren();
  const width = svg.clientWidth || 500, height = svg.clientHeight || 260, left = 48, right = 12, top = 10, bottom = 24;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const xs = series.flatMap((s) => s.points.map((p) => p[key]));
  const ys = series.flatMap((s) => s.points.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]));
  if (options.floor) ys.push(options.floor);
  // Time begins at 0; a loss goes from large to small, as training does.
  const [x0, x1] = key === "val" ? extent(xs).reverse() : [Math.min(...[0, ...xs.slice(0, 1)]), xs.reduce((a, b) => Math.max(a, b), 1e-9)];
  const [y0, y1] = extent(ys, options.log);
  c.range = [x0, x1];
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const ly = (y) => (options.log ? Math.log(Math.max(y, 1e-30)) : y);
  const py = (y) => height - bottom - ((ly(y) - ly(y0)) / (ly(y1) - ly(y0))) * (height - top - bottom);
  for (const v of ticks(y0, y1, options.log)) {
    draw(svg, "line", { class: "grid", x1: left, x2: width - right, y1: py(v), y2: py(v) });
    draw(svg, "text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }).textContent = short(v);
  }
  for (const v of ticks(Math.min(x0, x1), Math.max(x0, x1), false)) {
    draw(svg, "text", { x: px(v), y: height - 6, "text-anchor": "middle" }).textContent = short(v);
  }
  const clip = `clip-${charts.indexOf(c)}`;
  draw(draw(draw(svg, "defs", {}), "clipPath", { id: clip }), "rect", { x: left, y: top, width: width - left - right, height: height - top - bottom });
  const plot = draw(svg, "g", { "clip-path": `url(#${clip})` });
  data.runs.forEach((run) => run.events.filter((e) => e.marked && e[key] <= x1).forEach((e) => {
    draw(plot, "line", { class: "event", x1: px(e[key]), x2: px(e[key]), y1: top, y2: height - bottom });
  }));
  if (options.floor) draw(plot, "line", { x1: left, x2: width - right, y1: py(options.floor), y2: py(options.floor), stroke: "currentColor", "stroke-dasharray": "6 4" });
  for (const s of series) {
    const stroke = s.color ?? color(s.run);
    if (s.band) {
      const up = s.points.map((p) => `${px(p[key])},${py(p.high)}`), down = s.points.map((p) => `${px(p[key])},${py(p.low)}`).reverse();
      // Of single steps the band is a line.
      draw(plot, "polygon", { points: [...up, ...down].join(" "), fill: stroke, "fill-opacity": 0.18, stroke, "stroke-opacity": 0.25 });
    }
    // A point that is not a number interrupts the line.
    let path = "", open = false;
    for (const p of s.points) {
      if (!Number.isFinite(p.y)) { open = false; continue; }
      path += `${open ? "L" : "M"}${px(p[key])},${py(p.y)}`;
      open = true;
    }
    draw(plot, "path", { d: path, fill: "none", stroke, "stroke-width": s.dash ? 2 : 1.5, "stroke-dasharray": s.dash || "none" });
    if (s.bars || s.points.length === 1) for (const p of s.points) {
      draw(plot, "circle", { cx: px(p[key]), cy: py(p.y), r: 3, fill: stroke });
      if (p.low !== undefined) draw(plot, "line", { x1: px(p[key]), x2: px(p[key]), y1: py(p.low), y2: py(p.high), stroke });
    }
  }
  const last = series.map((s) => `${s.name} ${short(s.points[s.points.length - 1].y)}`).join(", ");
  svg.setAttribute("aria-label", `${c.title} against ${key}; last: ${last}`);
  if (c.at === null) { legend(c, (s) => s.points[s.points.length - 1]); return; }
  draw(svg, "line", { class: "cross", x1: px(c.at), x2: px(c.at), y1: top, y2: height - bottom });
  legend(c, (s) => s.points[nearest(c, s.points, c.at)]);
  const near = (e) => e.marked && Math.abs(px(e[key]) - px(c.at)) < 6;
  for (const run of data.runs) for (const e of run.events.filter(near)) make(c.read, "div", {}, `${many ? run.name + ", " : ""}step ${e.step}: ${e.kind}, ${e.text}`);
}

function legend(c, pick) {
  c.read.replaceChildren();
  for (const s of c.series) {
    const p = pick(s), item = make(c.read, "span");
    make(item, "span", { class: "key", style: `background:${s.color ?? color(s.run)}${s.dash ? ";opacity:.55" : ""}` });
    if (s.noise) item.append(`${s.name}: ± ${short(p.high)} (step ${p.step})  `);
    else item.append(`${s.name}: ${Number.isFinite(p.y) ? short(p.y) : "refused"} (step ${p.step})  `);
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
  if (data.runs.some((run) => run.train.mfu.some(Number.isFinite))) chart(parent, "Model FLOPs utilisation", of("mfu", "utilisation"));
  else chart(parent, "Model FLOP/s (the processor's peak is not known)", of("tokens_per_second", "speed").map((s, r) => ({
    ...s, points: data.runs[r].flops_per_token ? s.points.map((p) => ({ ...p, y: p.y * data.runs[r].flops_per_token })) : [],
  })));
  against(parent);
}

// How far each run's validation is from the first one's, and how far seeds alone put runs apart.
function against(parent) {
  if (!many) return;
  const [first, ...others] = data.runs;
  const at = (run, step) => run.val.find((v) => v.step === step)?.loss ?? NaN;
  const apart = others.map((run, r) => ({
    run: r + 1, name: run.name, bars: true,
    points: run.val.map((v) => ({ step: v.step, tokens: v.seen, y: v.loss - at(first, v.step) })).filter((p) => Number.isFinite(p.y)),
  }));
  const group = data.replicas.reduce((a, b) => (b.length > a.length ? b : a), []);
  const spread = (v) => {
    const losses = group.map((r) => at(data.runs[r], v.step)), mean = losses.reduce((a, b) => a + b, 0) / losses.length;
    const two = 2 * Math.sqrt(losses.reduce((a, b) => a + (b - mean) ** 2, 0) / (losses.length - 1));
    return { step: v.step, tokens: v.seen, y: 0, low: -two, high: two };
  };
  const band = group.length ? [{
    run: 0, name: `2 standard deviations of ${group.length} seeds`, band: true, noise: true, color: "#8a8f99",
    points: data.runs[group[0]].val.map(spread).filter((p) => Number.isFinite(p.high)),
  }] : [];
  const noise = group.length ? "grey: what seeds alone do" : "no two runs differ in their seeds alone, so noise is not known";
  if (apart.some((s) => s.points.length)) chart(parent, `Validation loss less that of ${first.name} (${noise})`, [...band, ...apart]);
}

// A run's charts at a time, where there are several.
function choose(section, runs, show) {
  section.hidden = !runs.length;
  if (!runs.length) return;
  const boxes = runs.map((run) => {
    const box = make(section, "div", { class: "charts" });
    show(run, box);
    return box;
  });
  if (runs.length === 1) return;
  const bar = make(section, "div", { class: "bar" });
  boxes[0].before(bar);
  const select = make(bar, "select", { "aria-label": "Run" });
  runs.forEach((run, i) => make(select, "option", { value: i }, run.name));
  const pick = () => { boxes.forEach((box, i) => { box.hidden = i !== +select.value; }); repaint(); };
  select.addEventListener("change", pick);
  boxes.forEach((box, i) => { box.hidden = i !== 0; });
}

// One line for each layer of a run, dark to bright from the bottom up; of many layers some.
function layers() {
  choose(document.getElementById("layers"), data.runs.filter((run) => run.layers.length), (run, parent) => {
    const { names, attention_logit_max } = run.layers[0];
    const lines = (all, value) => {
      const every = Math.ceil(all.length / 12);
      return all.map((name, i) => [name, i]).filter(([, i]) => i % every === 0 || i === all.length - 1).map(([name, i]) => ({
        run: 0, name, color: `hsl(${(280 * i) / all.length}, 65%, 50%)`,
        points: run.layers.map((l) => ({ step: l.step, tokens: l.seen, y: value(l, i) ?? NaN })),
      }));
    };
    chart(parent, "Update / weight", lines(names, (l, i) => l.update_norm[i] / l.weight_norm[i]), { log: true });
    chart(parent, "Gradient norm", lines(names, (l, i) => l.grad_norm[i]), { log: true });
    chart(parent, "Weight norm", lines(names, (l, i) => l.weight_norm[i]), { log: true });
    if (!attention_logit_max.length) return;
    chart(parent, "AdamW's step before the rate (root mean square)", lines(names, (l, i) => l.adam_step[i]), { log: true });
    chart(parent, "Largest attention logit, by block", lines(attention_logit_max.map((_, i) => String(i)), (l, i) => l.attention_logit_max[i]));
    chart(parent, "Head's logits (root mean square)", [{ run: 0, name: "logits", points: run.layers.map((l) => ({ step: l.step, tokens: l.seen, y: l.logit_rms ?? NaN })) }]);
  });
}

// What the time went into: in all, and of a step.
const PARTS = ["data", "forward", "head", "backward", "exchange", "optimizer", "other"];
function times() {
  const runs = data.runs.filter((run) => Object.keys(run.spent).length), section = document.getElementById("times");
  section.hidden = !runs.length;
  if (!runs.length) return;
  const names = [...new Set([...PARTS, ...runs.flatMap((run) => Object.keys(run.spent))])].filter((name) => runs.some((run) => run.spent[name] > 0));
  const cells = (run) => {
    const all = Object.values(run.spent).reduce((a, b) => a + b, 0);
    return [run.name, `${short(all)} s`, ...names.map((name) => `${(100 * (run.spent[name] ?? 0) / all).toFixed(1)} %`)];
  };
  for (const run of runs) {
    const bar = make(section, "div", { class: "share", "aria-hidden": "true" });
    names.forEach((name, i) => make(bar, "span", { style: `flex-grow:${run.spent[name] ?? 0};background:${color(i)}`, title: `${run.name}: ${name}` }));
  }
  table(section, ["run", "in all", ...names], runs.map(cells));
  [...section.querySelectorAll("th")].slice(2).forEach((th, i) => th.prepend(keyed(color(i))));
  choose(make(section, "div"), runs.filter((run) => run.parts.step.length), (run, parent) => {
    chart(parent, "Seconds of a step", PARTS.filter((name) => run.parts.seconds[name]).map((name) => ({
      run: 0, name, color: color(names.indexOf(name)),
      points: run.parts.step.map((step, i) => ({ step, tokens: run.parts.tokens[i], y: run.parts.seconds[name][i] })),
    })));
  });
}
const keyed = (background) => make(document.createDocumentFragment(), "span", { class: "key", style: `background:${background}` });

function evaluations() {
  const names = [...new Set(data.runs.flatMap((run) => run.evals.map((e) => `${e.task} · ${e.metric}`)))];
  if (!names.length) return;
  document.getElementById("evaluations").hidden = false;
  const parent = document.getElementById("eval-charts"), x = () => state.scores;
  // The validation that was made with the same model.
  const val = (run, step) => run.val.filter((v) => v.step <= step).pop()?.loss;
  for (const name of names) {
    chart(parent, name, data.runs.map((run, r) => ({
      run: r, name: label(run, "score"), bars: true,
      points: run.evals.filter((e) => `${e.task} · ${e.metric}` === name).map((e) => ({
        step: e.step, tokens: e.seen, val: val(run, e.step) ?? NaN, y: e.value ?? NaN,
        ...(e.stderr ? { low: e.value - e.stderr, high: e.value + e.stderr } : {}),
      })).filter((p) => Number.isFinite(p.val) || !run.val.length),
    })), { x });
  }
  const scores = document.getElementById("scores");
  scores.options[1].disabled = data.runs.some((run) => run.evals.length && !run.val.length);
  scores.addEventListener("change", (e) => { state.scores = e.target.value; repaint(); });
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
times();
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
