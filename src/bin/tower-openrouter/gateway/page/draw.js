// Words, numbers, elements and charts. What is told is text, and is only ever set as text.
const SVG = "http://www.w3.org/2000/svg";
export const $ = (id) => document.getElementById(id);

/** What was told last: all parts of the page are drawn from it. */
export const state = { picture: null };

// ---- words and numbers

export const whole = new Intl.NumberFormat("en");
export const plural = (count, one, many = `${one}s`) => `${whole.format(count)} ${count === 1 ? one : many}`;

export function rate(perSecond) {
  return perSecond >= 100 ? whole.format(Math.round(perSecond)) : perSecond.toFixed(1);
}

export function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return s > 3e8 ? "for good" : `${Math.round(s / 86400)} d`;
}

export function usd(amount) {
  if (amount === null || amount === undefined) return "–";
  if (amount === "unlimited") return "no limit";
  const digits = Math.abs(amount) < 1 ? 3 : 2;
  return `$${amount.toFixed(amount === 0 ? 2 : digits)}`;
}

export const words = (name) => name.replaceAll("_", " ");

// ---- elements

export function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function made(name, properties = {}, ...children) {
  const element = document.createElement(name);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

function drawn(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) element.setAttribute(attribute, value);
  element.append(...children);
  return element;
}

export function cell(className, label) {
  const td = made("td", { className });
  td.setAttribute("role", "cell");
  if (label) td.dataset.label = label;
  return td;
}

/** Tells in words, for eyes and for screen readers. */
export function say(text, bad = false) {
  $("said").className = bad ? "bad" : "";
  set($("said"), text);
}

// ---- charts: one bar or point a bucket, the oldest left

export const numbers = () => Array.from({ length: state.picture.buckets }, (_, at) => state.picture.bucket - state.picture.buckets + 1 + at);

/** How many seconds of a bucket have passed; the one that runs is drawn at its rate so far. */
export function seconds(number) {
  return number === state.picture.bucket ? Math.max(1, (performance.now() - state.picture.bucketSince) / 1000) : state.picture.bucket_s;
}

/** A round number above the largest. */
export function ceiling(largest, least) {
  const most = Math.max(largest, least);
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= most * 0.999);
}

export function bars(rows, height, scale) {
  const svg = drawn("svg", { viewBox: `0 0 ${state.picture.buckets * 4} ${height}`, preserveAspectRatio: "none", role: "img" });
  svg.append(drawn("line", { class: "base", x1: 0, x2: state.picture.buckets * 4, y1: height, y2: height }));
  rows.forEach(([good, bad], at) => {
    const [up, down] = [(good / scale) * height, (bad / scale) * height];
    const bar = (kind, y, h) => {
      if (h > 0) svg.append(drawn("rect", { class: kind, x: at * 4 + 0.4, width: 3.2, y, height: Math.max(h, 0.8) }));
    };
    bar("good", height - up, up);
    bar("bad-bar", height - up - Math.max(down, bad > 0 ? 1.5 : 0), Math.max(down, bad > 0 ? 1.5 : 0));
  });
  return svg;
}

export function curve(values, height, scale) {
  const svg = drawn("svg", { viewBox: `0 0 ${state.picture.buckets * 4} ${height}`, preserveAspectRatio: "none", role: "img" });
  svg.append(drawn("line", { class: "base", x1: 0, x2: state.picture.buckets * 4, y1: height, y2: height }));
  let run = [];
  const flush = () => {
    if (run.length === 1) run.push([run[0][0] + 1.5, run[0][1]]);
    if (run.length) {
      const path = run.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
      const [first, last] = [run[0][0], run[run.length - 1][0]];
      svg.append(drawn("polygon", { class: "under", points: `${first},${height} ${path} ${last},${height}` }));
      svg.append(drawn("polyline", { class: "curve", points: path }));
    }
    run = [];
  };
  values.forEach((value, at) => {
    if (value === null || value === undefined) flush();
    else run.push([at * 4 + 2, height - Math.min(1, value / scale) * height]);
  });
  flush();
  return svg;
}

export function chart(id, svg, said, most) {
  svg.setAttribute("aria-label", said);
  const axis = made("div", { className: "axis" }, made("span", { textContent: "5 min ago" }), made("span", { textContent: "now" }));
  $(id).replaceChildren(made("p", { className: "scale", textContent: most }), svg, axis);
}
