// Draws what /events tells, once a second. All that comes from there is text, and is only ever set as text.
import { $, bars, cell, ceiling, chart, curve, made, numbers, plural, rate, say, seconds, set, span, state, usd, whole, words } from "./draw.js";
import { showRequests } from "./requests.js";
import { showRests } from "./rests.js";

const TOKEN = "tower-openrouter-admin-token";
const SILENCE_MS = 5000; // an event comes every second
const LONGEST_WAIT_S = 8;

/** Buckets by key and number, as told so far. */
const past = new Map();
let totals = new Map();
let connection = null; // AbortController
let attempt = 0;
let retry = 0; // timer
let lastHeard = 0;

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
  const minute = all.slice(-Math.round(60 / state.picture.bucket_s)).filter((row) => row[3] !== null);
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
  set($("flight"), whole.format(state.picture.in_flight));
  set($("flight-note"), `most in 5 min: ${whole.format(peak)}`);
  scale = ceiling(peak, 5);
  chart("chart-flight", curve(flight, 44, scale), `Attempts in flight over five minutes, at most ${peak}`, `${scale}`);

  const waits = all.map((row) => (totals.has(row[0]) ? row[5] : null));
  const crowd = Math.max(0, ...waits);
  const classes = state.picture.waiting;
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
  const drawnRows = state.picture.keys.map((key) => {
    // labels need not differ
    const nth = (seen.get(key.key) ?? 0) + 1;
    seen.set(key.key, nth);
    const id = `${key.key}\n${nth}`;
    return [id, key, rows.get(id) ?? keyRow(key)];
  });
  const most = Math.max(
    1 / state.picture.bucket_s,
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
      button.setAttribute("aria-disabled", String(!state.picture.can_act || idle));
      button.disabled = !state.picture.can_act;
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
  const hidden = state.picture.keys_in_all - state.picture.keys.length;
  set($("keys-note"), `${state.picture.usable} of ${plural(state.picture.keys_in_all, "key")} can serve${hidden ? ` · ${whole.format(hidden)} that do well and do little are left out` : ""}`);
  set($("act-note"), state.picture.can_act ? "Drain: nothing new, what runs is finished. Isolate: the same, and nobody asks about the key either. Reset: back in service; rests, breaker and penalties are forgotten." : "To drain, isolate or reset keys here, start the gateway with --admin-token.");
}

function showCauses() {
  const most = Math.max(1, ...state.picture.causes.map((trouble) => trouble.count));
  $("causes-body").replaceChildren(
    ...state.picture.causes.map((trouble) => {
      const bar = made("span", { className: "bar" });
      bar.style.width = `${(100 * trouble.count) / most}%`;
      const others = trouble.keys > 1 ? ` and ${plural(trouble.keys - 1, "other")}` : "";
      return made("tr", {}, made("td", {}, words(trouble.cause), bar), made("td", { className: "n", textContent: whole.format(trouble.count) }), made("td", { textContent: trouble.most + others }));
    }),
  );
  $("causes-none").hidden = state.picture.causes.length > 0;
  const sum = (counts) => Object.values(counts).reduce((all, count) => all + count, 0);
  const { requests, retries, failovers } = state.picture.retry;
  set($("retry-note"), `Since the start: ${plural(requests, "request")}, ${whole.format(sum(failovers))} went on to another key at once, ${plural(sum(retries), "retry", "retries")}.`);
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
  told.bucketSince = state.picture && state.picture.bucket === told.bucket && !told.full ? state.picture.bucketSince : performance.now();
  state.picture = told;
  $("main").hidden = false;
  set($("about"), `gateway ${told.version}${told.simulated ? " · simulated upstream: answers are made up" : ""}`);
  showTotals();
  showRests();
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
  const others = state.picture.keys.filter((key) => key.key !== label && key.admin === "in_service");
  const key = state.picture.keys.find((key) => key.key === label);
  if (!state.picture.can_act || (action !== "reset" && key?.admin === { drain: "draining", isolate: "isolated" }[action])) return;
  if (action !== "reset" && others.length === 0 && !confirm(`${label} is the last key in service: requests will be refused. Go on?`)) return;
  if (!token()) return ask("To act on keys, show the admin token.");
  try {
    const response = await fetch(`keys/${encodeURIComponent(label)}/${action}`, { method: "POST", headers: headers() });
    const told = await response.json();
    if (response.status === 401) return ask("That was not the token: try again.");
    if (!response.ok) return say(told.error?.message ?? `The gateway answered ${response.status}.`, true);
    // what the next second would tell
    for (const one of state.picture.keys.filter((one) => one.key === label)) Object.assign(one, { admin: told.state, in_flight: told.in_flight });
    showKeys();
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
