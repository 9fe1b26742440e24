// Draws what /events tells, once a second. All that comes from there is text, and is only ever set as text.
const TOKEN = "tower-openrouter-admin-token";
const SILENCE_MS = 5000; // an event comes every second
const LONGEST_WAIT_S = 8;
const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

/** Buckets by key and number, as told so far. */
const past = new Map();
let totals = new Map();
let picture = null;
let connection = null; // AbortController
let attempt = 0;
let retry = 0; // timer
let lastHeard = 0;

// ---- words and numbers

const whole = new Intl.NumberFormat("en");
const plural = (count, one, many = `${one}s`) => `${whole.format(count)} ${count === 1 ? one : many}`;

function rate(perSecond) {
  return perSecond >= 100 ? whole.format(Math.round(perSecond)) : perSecond.toFixed(1);
}

function span(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.round(s)} s`;
  if (s < 7200) return `${Math.round(s / 60)} min`;
  if (s < 172800) return `${Math.round(s / 3600)} h`;
  return s > 3e8 ? "for good" : `${Math.round(s / 86400)} d`;
}

function usd(amount) {
  if (amount === null || amount === undefined) return "–";
  if (amount === "unlimited") return "no limit";
  const digits = Math.abs(amount) < 1 ? 3 : 2;
  return `$${amount.toFixed(amount === 0 ? 2 : digits)}`;
}

const words = (name) => name.replaceAll("_", " ");

// ---- elements

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function made(name, properties = {}, ...children) {
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

function cell(className, label) {
  const td = made("td", { className });
  td.setAttribute("role", "cell");
  if (label) td.dataset.label = label;
  return td;
}

/** Tells in words, for eyes and for screen readers. */
function say(text, bad = false) {
  $("said").className = bad ? "bad" : "";
  set($("said"), text);
}

// ---- charts: one bar or point a bucket, the oldest left

const numbers = () => Array.from({ length: picture.buckets }, (_, at) => picture.bucket - picture.buckets + 1 + at);

/** How many seconds of a bucket have passed; the one that runs is drawn at its rate so far. */
function seconds(number) {
  return number === picture.bucket ? Math.max(1, (performance.now() - picture.bucketSince) / 1000) : picture.bucket_s;
}

/** A round number above the largest. */
function ceiling(largest, least) {
  const most = Math.max(largest, least);
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= most * 0.999);
}

function bars(rows, height, scale) {
  const svg = drawn("svg", { viewBox: `0 0 ${picture.buckets * 4} ${height}`, preserveAspectRatio: "none", role: "img" });
  svg.append(drawn("line", { class: "base", x1: 0, x2: picture.buckets * 4, y1: height, y2: height }));
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

function curve(values, height, scale) {
  const svg = drawn("svg", { viewBox: `0 0 ${picture.buckets * 4} ${height}`, preserveAspectRatio: "none", role: "img" });
  svg.append(drawn("line", { class: "base", x1: 0, x2: picture.buckets * 4, y1: height, y2: height }));
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

function chart(id, svg, said, most) {
  svg.setAttribute("aria-label", said);
  const axis = made("div", { className: "axis" }, made("span", { textContent: "5 min ago" }), made("span", { textContent: "now" }));
  $(id).replaceChildren(made("p", { className: "scale", textContent: most }), svg, axis);
}

// ---- the whole

function showTotals() {
  const all = numbers().map((number) => totals.get(number) ?? [number, 0, 0, null, 0, 0]);
  const perSecond = all.map(([number, good, bad]) => [good / seconds(number), bad / seconds(number)]);
  const most = Math.max(...perSecond.map(([good, bad]) => good + bad));
  const lately = all.slice(-3);
  const time = lately.reduce((sum, [number]) => sum + seconds(number), 0);
  const ended = lately.reduce((sum, [, good, bad]) => sum + good + bad, 0);
  set($("rate"), rate(ended / time));
  set($("rate-note"), `most in 5 min: ${rate(most)}/s`);
  let scale = ceiling(most, 1);
  chart("chart-rate", bars(perSecond, 44, scale), `Attempts per second over five minutes, at most ${rate(most)}`, `${scale}/s`);

  const good = all.reduce((sum, row) => sum + row[1], 0);
  const bad = all.reduce((sum, row) => sum + row[2], 0);
  set($("failed"), good + bad ? ((100 * bad) / (good + bad)).toFixed(1) : "0.0");
  set($("failed-note"), `${whole.format(bad)} of ${plural(good + bad, "attempt")}`);
  const mostBad = Math.max(...perSecond.map((row) => row[1]));
  scale = ceiling(mostBad, 1);
  chart("chart-failed", bars(perSecond.map((row) => [0, row[1]]), 44, scale), `Failed attempts per second over five minutes, at most ${rate(mostBad)}`, `${scale}/s`);

  const first = all.map((row) => row[3]);
  const minute = all.slice(-Math.round(60 / picture.bucket_s)).filter((row) => row[3] !== null);
  const weight = minute.reduce((sum, row) => sum + row[1], 0);
  const mean = weight ? minute.reduce((sum, row) => sum + row[1] * row[3], 0) / weight : null;
  const [value, unit] = span(mean).split(" ");
  set($("first"), value);
  set($("first-unit"), unit ?? "");
  const slowest = Math.max(0, ...first.filter((ms) => ms !== null));
  set($("first-note"), slowest ? `slowest 5 s: ${span(slowest)}` : "");
  scale = ceiling(slowest, 100);
  chart("chart-first", curve(first, 44, scale), `Mean time to first output over five minutes, at most ${span(slowest)}`, span(scale));

  const flight = all.map((row) => (totals.has(row[0]) ? row[4] : null));
  const peak = Math.max(0, ...flight);
  set($("flight"), whole.format(picture.in_flight));
  set($("flight-note"), `most in 5 min: ${whole.format(peak)}`);
  scale = ceiling(peak, 5);
  chart("chart-flight", curve(flight, 44, scale), `Attempts in flight over five minutes, at most ${peak}`, `${scale}`);

  const waits = all.map((row) => (totals.has(row[0]) ? row[5] : null));
  const crowd = Math.max(0, ...waits);
  const classes = picture.waiting;
  set($("waiting"), whole.format(classes.high + classes.normal + classes.low));
  set($("waiting-note"), `${classes.high} high · ${classes.normal} normal · ${classes.low} low`);
  scale = ceiling(crowd, 5);
  chart("chart-waiting", curve(waits, 44, scale), `Requests waiting for a key over five minutes, at most ${crowd}`, `${scale}`);
}

/** How a key stands: a word, how bad that is, and what there is to add. */
function standing(key) {
  const rest = key.rest && [`resting ${span(key.rest.ms)}`, words(key.rest.cause)];
  if (key.admin === "isolated") {
    return ["out", key.in_flight ? `isolated, ${key.in_flight} still run` : "isolated", rest ? rest.join(" · ") : "takes nothing, asked nothing"];
  }
  if (key.admin === "draining") {
    return ["out", key.in_flight ? `draining ${key.in_flight}` : "drained", rest ? rest.join(" · ") : "takes nothing new"];
  }
  const breaker = key.breaker;
  if (breaker?.state === "open") return ["bad", `breaker open ${span(breaker.ms)}`, rest ? rest.join(" · ") : plural(breaker.trips, "trip")];
  if (rest) return ["bad", ...rest];
  if (breaker?.state === "half_open") return ["warn", "breaker half-open", "a request tries it"];
  if (breaker && breaker.state !== "closed") return ["warn", `breaker ${breaker.state}`, "by hand"];
  return ["plain", "in service", breaker?.trips ? `breaker closed · ${plural(breaker.trips, "trip")}` : ""];
}

const rows = new Map();
const ACTIONS = [
  ["drain", "Drain"],
  ["isolate", "Isolate"],
  ["reset", "Reset"],
];

function keyRow(key) {
  const tr = made("tr");
  tr.setAttribute("role", "row");
  tr.dataset.key = key.key;
  const parts = { tr };
  const name = made("td", { className: "name" }, (parts.name = made("span")), (parts.account = made("small")));
  name.setAttribute("role", "rowheader");
  const state = cell("state");
  state.append((parts.chip = made("span")), (parts.more = made("small")));
  parts.spark = cell("spark");
  parts.rate = cell("n", "Now");
  parts.flight = cell("n", "In flight");
  parts.first = cell("n", "First output");
  parts.failed = cell("n", "Failed");
  parts.credit = cell("n", "Credit left");
  parts.cost = cell("n", "Cost");
  const acts = cell("acts");
  parts.buttons = ACTIONS.map(([action, text]) => {
    const button = made("button", { type: "button", textContent: text });
    button.setAttribute("aria-label", `${text} ${key.key}`);
    button.addEventListener("click", () => act(key.key, action));
    acts.append(button, " ");
    return button;
  });
  tr.append(name, state, parts.spark, parts.rate, parts.flight, parts.first, parts.failed, parts.credit, parts.cost, acts);
  return parts;
}

function showKeys() {
  const seen = new Map();
  const body = $("keys-body");
  const drawnRows = picture.keys.map((key) => {
    // labels need not differ
    const nth = (seen.get(key.key) ?? 0) + 1;
    seen.set(key.key, nth);
    const id = `${key.key}\n${nth}`;
    return [id, key, rows.get(id) ?? keyRow(key)];
  });
  const most = Math.max(
    1 / picture.bucket_s,
    ...drawnRows.flatMap(([id]) => [...(past.get(id)?.values() ?? [])].map(([number, good, bad]) => (good + bad) / seconds(number))),
  );
  for (const [id, key, parts] of drawnRows) {
    const [kind, word, more] = standing(key);
    parts.tr.dataset.state = word.replace(/[ ,].*/, "");
    parts.tr.dataset.admin = key.admin;
    set(parts.name, key.key);
    set(parts.account, key.account ?? "");
    set(parts.chip, word);
    if (parts.chip.className !== `chip ${kind}`) parts.chip.className = `chip ${kind}`;
    set(parts.more, more);
    const mine = past.get(id) ?? new Map();
    const perSecond = numbers().map((number) => {
      const [, good, bad] = mine.get(number) ?? [number, 0, 0];
      return [good / seconds(number), bad / seconds(number)];
    });
    const spark = bars(perSecond, 24, most);
    const good = [...mine.values()].reduce((sum, row) => sum + row[1], 0);
    const bad = Object.values(key.failed).reduce((sum, count) => sum + count, 0);
    spark.setAttribute("aria-label", `${good} succeeded, ${bad} failed`);
    parts.spark.replaceChildren(spark);
    const lately = perSecond.slice(-3);
    const time = numbers().slice(-3).map(seconds);
    const ended = lately.reduce((sum, [up, down], at) => sum + (up + down) * time[at], 0);
    set(parts.rate, `${rate(ended / time.reduce((sum, s) => sum + s, 0))}/s`);
    set(parts.flight, whole.format(key.in_flight));
    set(parts.first, span(key.first_output_ms));
    const worst = Object.entries(key.failed).sort((one, two) => two[1] - one[1])[0];
    parts.failed.classList.toggle("trouble", bad > 0);
    const share = bad ? `${((100 * bad) / (good + bad)).toFixed(1)} %` : "0";
    parts.failed.replaceChildren(share, ...(worst ? [made("small", { textContent: `${worst[1]} ${words(worst[0])}` })] : []));
    set(parts.credit, usd(key.credit?.spendable_usd));
    set(parts.cost, usd(key.cost_usd));
    for (const [at, button] of parts.buttons.entries()) {
      const idle = (ACTIONS[at][0] === "drain" && key.admin === "draining") || (ACTIONS[at][0] === "isolate" && key.admin === "isolated");
      // a disabled button loses the focus, and with it who works by keyboard
      button.setAttribute("aria-disabled", String(!picture.can_act || idle));
      button.disabled = !picture.can_act;
    }
    rows.set(id, parts);
  }
  const ids = new Set(drawnRows.map(([id]) => id));
  for (const [id, parts] of rows) {
    if (!ids.has(id)) {
      parts.tr.remove();
      rows.delete(id);
      past.delete(id);
    }
  }
  drawnRows.forEach(([, , parts], at) => {
    if (body.children[at] !== parts.tr) body.insertBefore(parts.tr, body.children[at] ?? null);
  });
  const hidden = picture.keys_in_all - picture.keys.length;
  set($("keys-note"), `${picture.usable} of ${plural(picture.keys_in_all, "key")} can serve${hidden ? ` · ${whole.format(hidden)} that do well and do little are left out` : ""}`);
  set($("act-note"), picture.can_act ? "Drain: nothing new, what runs is finished. Isolate: the same, and nobody asks about the key either. Reset: back in service; rests, breaker and penalties are forgotten." : "To drain, isolate or reset keys here, start the gateway with --admin-token.");
}

function showCauses() {
  const most = Math.max(1, ...picture.causes.map((trouble) => trouble.count));
  $("causes-body").replaceChildren(
    ...picture.causes.map((trouble) => {
      const bar = made("span", { className: "bar" });
      bar.style.width = `${(100 * trouble.count) / most}%`;
      const others = trouble.keys > 1 ? ` and ${plural(trouble.keys - 1, "other")}` : "";
      return made("tr", {}, made("td", {}, words(trouble.cause), bar), made("td", { className: "n", textContent: whole.format(trouble.count) }), made("td", { textContent: trouble.most + others }));
    }),
  );
  $("causes-none").hidden = picture.causes.length > 0;
  const sum = (counts) => Object.values(counts).reduce((all, count) => all + count, 0);
  const { requests, retries, failovers } = picture.retry;
  set($("retry-note"), `Since the start: ${plural(requests, "request")}, ${whole.format(sum(failovers))} went on to another key at once, ${plural(sum(retries), "retry", "retries")}.`);
}

// ---- requests

/** Why a request went to its key, in a sentence. */
function why(one) {
  const look = one.looks[one.looks.length - 1];
  if (!look) return one.key ? "it came free for this request, which waited" : "";
  const out = look.refused.map((group) => {
    const reason = words(group.reason) + (group.cause ? ` (${words(group.cause)})` : group.filter ? ` (${group.filter})` : "");
    return `${group.count} ${reason}`;
  });
  const compared = look.compared.filter((figure) => figure.key !== one.key);
  const own = look.compared.find((figure) => figure.key === one.key);
  const value = (figure) => (figure.value === null ? "–" : Number(figure.value.toFixed(2)));
  const others = compared.slice(0, 2).map((figure) => `, ${figure.key} ${value(figure)}`);
  const against = own ? `: ${words(own.figure)} ${value(own)}${others.join("")}` : "";
  const how = { pick: look.pick, scan: `a scan after ${look.pick}`, line: "first to come free" }[one.by] ?? look.pick;
  const found = one.key ? `${how}, of ${plural(look.candidates.count, "key")}${against}` : "no key could be had";
  return out.length ? `${found} · out: ${out.join(", ")}` : found;
}

function result(one, request) {
  if (one.rejected) return ["bad", words(one.rejected)];
  if (one.outcome?.cause) return ["bad", words(one.outcome.cause)];
  if (one.outcome?.success) return ["plain", one.ending === null ? `${one.status} running` : `${one.status ?? ""} ok`];
  if (request.result?.kind === "left" || one.ending === "dropped" || one.ending === "future_dropped") return ["warn", "client left"];
  return ["plain", one.status ? `${one.status} running` : "running"];
}

function next(one) {
  if (!one.next) return "";
  const { kind, wait_ms, why: reason } = one.next;
  return { failover: "went on to another key", retry: `tried again after ${span(wait_ms)}`, other_model: "went on to the next model", give_up: `gave up: ${words(reason ?? "")}` }[kind] ?? kind;
}

const requestRows = new Map();
let open = null;

function requestRow(request) {
  const tr = made("tr");
  tr.setAttribute("role", "row");
  const parts = { tr, age: cell("n", "Age"), model: cell("model"), key: cell("key"), why: cell("why"), waited: cell("n", "Waited"), took: cell("n", "Took"), end: cell("end"), more: cell("more") };
  parts.end.append((parts.chip = made("span")));
  parts.button = made("button", { type: "button", textContent: "Details" });
  parts.button.setAttribute("aria-expanded", "false");
  parts.button.setAttribute("aria-label", `Details of request ${request.id}`);
  parts.button.addEventListener("click", () => {
    open = open === request.id ? null : request.id;
    showRequests();
  });
  parts.more.append(parts.button);
  tr.append(parts.age, parts.model, parts.key, parts.why, parts.waited, parts.took, parts.end, parts.more);
  return parts;
}

function details(request) {
  const steps = request.attempts.map((one) => {
    const [, word] = result(one, request);
    const facts = [
      one.waited_ms ? `waited ${span(one.waited_ms)}` : "",
      one.head_ms !== null ? `head after ${span(one.head_ms)}` : "",
      one.took_ms !== null ? `took ${span(one.took_ms)}` : "",
      one.provider ? `provider ${one.provider}` : "",
      one.usage ? `${whole.format(one.usage.prompt_tokens)} + ${whole.format(one.usage.completion_tokens)} tokens, ${usd(one.usage.cost_usd)}` : "",
      one.outcome?.rest_ms ? `asks for a rest of ${span(one.outcome.rest_ms)}` : "",
      next(one),
    ].filter(Boolean);
    return made("li", {}, made("b", { textContent: one.key ?? "no key" }), ` ${word}${one.hedge ? ", sent beside the one before" : ""}`, made("p", { textContent: why(one) }), made("p", { textContent: facts.join(" · ") }));
  });
  const list = made("ol", { className: "steps" }, ...steps);
  if (request.left_out) list.prepend(made("li", { textContent: `${plural(request.left_out, "earlier attempt")} left out` }));
  list.append(made("p", {}, "id ", made("code", { textContent: request.id })));
  if (request.result?.detail) list.append(made("p", { textContent: request.result.detail }));
  const td = cell("");
  td.colSpan = 8;
  td.append(list);
  const tr = made("tr", { className: "opened" }, td);
  tr.setAttribute("role", "row");
  return tr;
}

function showRequests() {
  const body = $("requests-body");
  // what is being read is not moved
  const held = open !== null && requestRows.has(open);
  if (!held) open = null;
  if (held) {
    for (const [id, parts] of requestRows) {
      const isOpen = id === open;
      if (parts.button.getAttribute("aria-expanded") !== String(isOpen)) parts.button.setAttribute("aria-expanded", String(isOpen));
      set(parts.button, isOpen ? "Close" : "Details");
      if (!isOpen) {
        parts.details?.remove();
        parts.details = null;
      } else if (!parts.details) {
        parts.details = details(parts.request);
        parts.tr.after(parts.details);
      }
    }
  } else {
    const shown = picture.requests.map((request) => {
      const parts = requestRows.get(request.id) ?? requestRow(request);
      parts.request = request;
      parts.details?.remove();
      parts.details = null;
      parts.button.setAttribute("aria-expanded", "false");
      set(parts.button, "Details");
      const last = request.attempts[request.attempts.length - 1];
      set(parts.age, request.age_ms < 1000 ? "now" : span(Math.floor(request.age_ms / 1000) * 1000).replace(".0", ""));
      if (last) {
        const [kind, word] = result(last, request);
        set(parts.model, last.model ?? "–");
        parts.model.title = last.model ?? "";
        set(parts.key, last.key ?? "–");
        set(parts.why, (request.attempts.length > 1 ? `${request.attempts.length} attempts; ` : "") + why(last));
        set(parts.waited, last.waited_ms ? span(last.waited_ms) : "–");
        set(parts.took, span(last.took_ms));
        set(parts.chip, word);
        parts.chip.className = `chip ${kind}`;
      } else {
        set(parts.chip, request.result ? words(request.result.kind) : "running");
        parts.chip.className = "chip plain";
      }
      requestRows.set(request.id, parts);
      return parts;
    });
    const ids = new Set(picture.requests.map((request) => request.id));
    for (const id of requestRows.keys()) if (!ids.has(id)) requestRows.delete(id);
    const active = document.activeElement;
    body.replaceChildren(...shown.map((parts) => parts.tr));
    if (active && active !== document.activeElement && body.contains(active)) active.focus({ preventScroll: true });
  }
  const which = { all: "every one", asked: "up to 10 a second while this page is open, and those that ask", off: "none: start with --explain asked or all" };
  set($("requests-note"), held ? "held while one is open" : which[picture.explain] ?? "");
  $("requests-none").hidden = picture.requests.length > 0;
  set($("requests-none"), picture.explain === "off" ? "No request is explained (--explain off)." : "None yet.");
}

function take(told) {
  const seen = new Map();
  if (told.full) {
    past.clear();
    totals = new Map();
  }
  for (const total of told.all) totals.set(total[0], total);
  for (const key of told.keys) {
    const nth = (seen.get(key.key) ?? 0) + 1;
    seen.set(key.key, nth);
    const id = `${key.key}\n${nth}`;
    const mine = past.get(id) ?? new Map();
    for (const bucket of key.buckets) mine.set(bucket[0], bucket);
    for (const number of mine.keys()) if (number <= told.bucket - told.buckets) mine.delete(number);
    past.set(id, mine);
  }
  for (const number of totals.keys()) if (number <= told.bucket - told.buckets) totals.delete(number);
  told.bucketSince = picture && picture.bucket === told.bucket && !told.full ? picture.bucketSince : performance.now();
  picture = told;
  $("main").hidden = false;
  set($("about"), `gateway ${told.version}${told.simulated ? " · simulated upstream: answers are made up" : ""}`);
  showTotals();
  showKeys();
  showCauses();
  showRequests();
}

// ---- the connection

function token() {
  return sessionStorage.getItem(TOKEN);
}

function headers() {
  return token() ? { authorization: `Bearer ${token()}` } : {};
}

function link(state, text) {
  document.body.dataset.link = state;
  set($("link-text"), text);
  $("again").hidden = state !== "lost";
  $("forget").hidden = !token();
}

function ask(text) {
  sessionStorage.removeItem(TOKEN);
  link("closed", "token needed");
  $("main").hidden = true;
  $("door").hidden = false;
  set($("door-text"), text);
  $("token").focus();
}

async function listen() {
  clearTimeout(retry);
  connection?.abort();
  const mine = (connection = new AbortController());
  let why = "the connection was lost";
  let watchdog = 0;
  const alive = () => {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => mine.abort(), SILENCE_MS);
  };
  try {
    alive();
    const response = await fetch("events", { headers: headers(), cache: "no-store", signal: mine.signal });
    if (response.status === 401) return ask(token() ? "That was not the token: try again." : "It is kept in this tab until that is closed.");
    if (!response.ok) {
      why = (await response.json()).error?.message ?? `the gateway answered ${response.status}`;
      throw new Error(why);
    }
    $("door").hidden = true;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ; ) {
      const { value, done } = await reader.read();
      if (done) break;
      alive();
      text += value;
      for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
        const lines = text.slice(0, end).split("\n");
        text = text.slice(end + 2);
        if (lines.includes("event: stopping")) {
          why = "the gateway is stopping";
          continue;
        }
        const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
        if (attempt > 0) say("Connected again.");
        attempt = 0;
        lastHeard = Date.now();
        link("live", "live");
        take(JSON.parse(data));
      }
    }
  } catch (error) {
    // told below
    if (error.name !== "AbortError") console.debug(error.message);
  } finally {
    clearTimeout(watchdog);
  }
  if (mine !== connection || document.hidden) return;
  lost(why);
}

function lost(why) {
  const wait = Math.min(2 ** attempt, LONGEST_WAIT_S);
  if (attempt === 0) say(`Not connected: ${why}. What is shown is old.`, true);
  attempt += 1;
  const old = lastHeard ? `, shown as of ${new Date(lastHeard).toLocaleTimeString()}` : "";
  link("lost", `${why}${old}; next try in ${wait} s`);
  retry = setTimeout(listen, wait * 1000);
}

async function act(label, action) {
  const others = picture.keys.filter((key) => key.key !== label && key.admin === "in_service");
  const key = picture.keys.find((key) => key.key === label);
  if (!picture.can_act || (action !== "reset" && key?.admin === { drain: "draining", isolate: "isolated" }[action])) return;
  if (action !== "reset" && others.length === 0 && !confirm(`${label} is the last key in service: requests will be refused. Go on?`)) return;
  if (!token()) return ask("To act on keys, show the admin token.");
  try {
    const response = await fetch(`keys/${encodeURIComponent(label)}/${action}`, { method: "POST", headers: headers() });
    const told = await response.json();
    if (response.status === 401) return ask("That was not the token: try again.");
    if (!response.ok) return say(told.error?.message ?? `The gateway answered ${response.status}.`, true);
    const done = { drain: "is drained", isolate: "is isolated", reset: "is back in service" }[action];
    say(`${label} ${done}${action !== "reset" && told.in_flight ? `; ${plural(told.in_flight, "request")} on it will be finished` : ""}.`);
  } catch {
    say(`${label} was not changed: the gateway could not be reached.`, true);
  }
}

$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value);
  $("token").value = "";
  link("connecting", "connecting");
  listen();
});
$("again").addEventListener("click", listen);
$("forget").addEventListener("click", () => {
  connection?.abort();
  ask("The token is forgotten.");
});
// nobody looks: nothing need be drawn
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(retry);
    const old = connection;
    connection = null;
    old?.abort();
    link("lost", "paused while hidden");
  } else if ($("door").hidden) listen();
});
if (document.body.dataset.token === "asked" && !token()) ask("It is kept in this tab until that is closed.");
else if (!document.hidden) listen();
