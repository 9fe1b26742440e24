// The gateway's live page in a real browser, before the simulator and under load: a key dies, others are drained, isolated and
// reset by keyboard alone, and the simulator counts.
//
//     node tests/browser/page.mjs SCREENSHOTS BINARY
//
// Prints one line a case and, last, `N passed, N failed`. Keeps screenshots in the folder SCREENSHOTS. The browser is the one
// that the environment names as CHROMIUM, or /usr/bin/chromium.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const [folder, binary] = process.argv.slice(2);
const SCENARIO = join(dirname(fileURLToPath(import.meta.url)), "page.toml");
const TOKEN = "operator-of-the-page";
const MOST_BYTES = 100_000;
const SOON_MS = 2000;
const PATIENCE_MS = 15_000;
const KEYS = [...readFileSync(SCENARIO, "utf8").matchAll(/label = "([^"]+)", account = "([^"]+)", secret = "([^"]+)"/g)].map(
  ([, label, account, secret]) => ({ label, account, secret }),
);
const BALANCED = KEYS.filter((key) => !key.label.endsWith("-manager"));

/** Starts the binary, and waits until all of these patterns were printed; gives their first groups. */
async function started(args, patterns) {
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/OPENROUTER/.test(name)));
  const child = spawn(binary, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  let text = "";
  let ended = false;
  child.stdout.on("data", (data) => (text += data));
  child.stderr.on("data", (data) => (text += data));
  const end = new Promise((resolve) => child.on("exit", resolve)).then(() => (ended = true));
  const found = await until(() => {
    assert(!ended, `${args[0]} did not start:\n${text}`);
    const matches = patterns.map((pattern) => text.match(pattern));
    return matches.every(Boolean) && matches.map((match) => match[1]);
  }, `${args[0]} to start`);
  return { found, end, output: () => text, stop: (signal = "SIGTERM") => child.kill(signal) };
}

/** Looks again and again until there is something. */
async function until(look, what, patience = PATIENCE_MS) {
  for (const start = Date.now(); ; await sleep(20)) {
    const found = await look();
    if (found) return found;
    assert(Date.now() - start < patience, `waited ${patience} ms in vain for ${what}`);
  }
}

/** What a key's manager may do at the simulator. */
async function manage(upstream, label, method, body) {
  const key = KEYS.find((key) => key.label === label);
  const manager = KEYS.find((other) => other.label === `${key.account}-manager`);
  const hash = createHash("sha256").update(key.secret).digest("hex");
  const headers = { authorization: `Bearer ${manager.secret}`, "content-type": "application/json" };
  const response = await fetch(`${upstream}/api/v1/keys/${hash}`, { method, headers, body: body && JSON.stringify(body) });
  assert.equal(response.status, 200, `${method} ${label}`);
  return (await response.json()).data;
}

/** What the simulator has charged a key, in dollars: it grows with each request that ends. */
const used = async (upstream, label) => (await manage(upstream, label, "GET")).usage;

/** Asks the gateway until stopped, some at once. */
function load(api, atOnce) {
  let running = true;
  const counts = { ok: 0, failed: 0 };
  const worker = async (number) => {
    for (let turn = number; running; turn += 1) {
      const stream = turn % 2 === 0;
      const model = turn % 3 === 0 ? "acme/deep-2" : "acme/swift-1";
      const body = JSON.stringify({ model, stream, messages: [{ role: "user", content: "Say twenty words." }] });
      try {
        const response = await fetch(`${api}/v1/chat/completions`, { method: "POST", headers: { "content-type": "application/json" }, body });
        await response.text();
        counts[response.ok ? "ok" : "failed"] += 1;
      } catch {
        counts.failed += 1;
        await sleep(200);
      }
      await sleep(60);
    }
  };
  const workers = Array.from({ length: atOnce }, (_, number) => worker(number));
  return {
    counts,
    stop: () => {
      running = false;
      return Promise.all(workers);
    },
  };
}

/** What is wrong with the page as it is laid out, as sentences. */
function problems() {
  const found = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    const wide = [...document.querySelectorAll("body *")].find((element) => element.getBoundingClientRect().right > root.clientWidth + 1);
    found.push(`scrolls sideways by ${root.scrollWidth - root.clientWidth} px: ${wide?.outerHTML.slice(0, 120)}`);
  }
  if (/NaN|undefined|null|Infinity|\[object/.test(document.body.innerText)) found.push("shows a value that is none");
  for (const svg of document.querySelectorAll("svg")) {
    if (/NaN|undefined|Infinity/.test(svg.innerHTML)) found.push(`a point is not a number: ${svg.innerHTML.slice(0, 100)}`);
    if (!svg.getAttribute("aria-label")) found.push("a chart that says nothing to who cannot see it");
  }
  for (const table of document.querySelectorAll("table")) {
    if (!table.caption || !table.querySelector("th[scope]")) found.push("a table without caption or headings");
  }
  for (const button of document.querySelectorAll("main button")) {
    if (!button.checkVisibility()) continue;
    const { height } = button.getBoundingClientRect();
    if (height < 24) found.push(`a button of ${height} px: ${button.textContent}`);
    if (!button.getAttribute("aria-label")) found.push(`a button that does not say of what: ${button.textContent}`);
  }
  const clear = (color) => /, 0\)$|transparent/.test(color);
  const luminance = (color) => {
    const [red, green, blue] = color.match(/[\d.]+/g).slice(0, 3).map((value) => value / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let checked = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.closest("noscript, script, .aside, .skip") || !element.checkVisibility()) continue;
    let ground = element;
    while (ground && clear(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement;
    const [one, two] = [getComputedStyle(element).color, getComputedStyle(ground ?? document.body).backgroundColor].map(luminance);
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    checked += 1;
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(1)}: “${node.data.trim().slice(0, 40)}”`);
  }
  if (checked < 40) found.push(`only ${checked} texts: something is missing`);
  return found;
}

mkdirSync(folder, { recursive: true });
const scratch = mkdtempSync(join(tmpdir(), "tower-openrouter-page-"));
const config = join(scratch, "gateway.toml");
const simulator = await started(["simulator", "--listen", "127.0.0.1:0", "--scenario", SCENARIO], [/on (http:\/\/127\.0\.0\.1:\d+)/]);
const [upstream] = simulator.found;
writeFileSync(
  config,
  [
    `upstream = "${upstream}/api/v1"`,
    `admin_token = "${TOKEN}"`,
    'drain_timeout = "2s"',
    "[credit]",
    'poll_interval = "2s"',
    ...BALANCED.map(({ label, account, secret }) => `[[keys]]\nlabel = "${label}"\naccount = "${account}"\nkey = "${secret}"`),
  ].join("\n"),
);
const up = (listen, admin) =>
  started(
    ["gateway", "--config", config, "--listen", listen, "--admin-listen", admin],
    [/API +(http:\/\/127\.0\.0\.1:\d+)/, /admin +(http:\/\/127\.0\.0\.1:\d+)/, /curl -N(.)/],
  );
let gateway = await up("127.0.0.1:0", "127.0.0.1:0");
const [api, admin] = gateway.found;
let traffic = load(api, 14);

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
page.setDefaultTimeout(PATIENCE_MS);
const heard = [];
const files = new Set();
page.on("console", (message) => {
  if (["error", "warning"].includes(message.type())) heard.push(`console: ${message.text()}`);
});
page.on("pageerror", (error) => heard.push(`page error: ${error.message}`));
page.on("request", (request) => {
  const { origin, pathname } = new URL(request.url());
  if (!/^data:/.test(request.url()) && origin !== admin) heard.push(`asks for ${request.url()}`);
  if (/^\/($|[a-z]+\.[a-z]+$)/.test(pathname)) files.add(pathname);
});

const row = (label) => page.locator(`tr[data-key="${label}"]`);
const state = (label) => row(label).getAttribute("data-state");
const shows = (label, word, patience) => until(async () => (await state(label)) === word, `${label} to be ${word}`, patience);

/** Goes to a button by the Tab key alone, and presses it. */
async function press(name) {
  await page.evaluate(() => document.activeElement?.blur());
  for (let steps = 0; steps < 150; steps += 1) {
    await page.keyboard.press("Tab");
    const focused = await page.evaluate(() => {
      const { activeElement: element } = document;
      return [element.getAttribute("aria-label"), getComputedStyle(element).outlineStyle];
    });
    if (focused[0] === name) {
      assert.notEqual(focused[1], "none", `${name} does not show that it has the focus`);
      return page.keyboard.press("Enter");
    }
  }
  assert.fail(`no way to ${name} by keyboard`);
}

/** Looks at the page in every size and light, and keeps what it saw. */
async function looked(name) {
  const found = [];
  for (const [width, height] of [[1280, 900], [390, 844]]) {
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize({ width, height });
      await sleep(400);
      found.push(...(await page.evaluate(problems)).map((problem) => `${width} px, ${colorScheme}: ${problem}`));
      await page.screenshot({ path: join(folder, `page-${name}-${width}-${colorScheme}.png`), fullPage: true });
    }
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 1280, height: 900 });
  assert.deepEqual(found, []);
}

let [passed, failed] = [0, 0];
async function step(name, run) {
  const before = heard.length;
  try {
    const said = await run();
    assert.deepEqual(heard.slice(before), []);
    console.log(`ok  ${name}${said ? `: ${said}` : ""}`);
    passed += 1;
  } catch (error) {
    console.log(`FAILED  ${name}\n        ${String(error.message).split("\n").slice(0, 12).join("\n        ")}`);
    failed += 1;
    await page.screenshot({ path: join(folder, `page-failed-${failed}.png`), fullPage: true }).catch(() => {});
  }
}

await step("the page asks for the token, and shows nothing without", async () => {
  await page.goto(admin);
  await page.locator("#token").waitFor();
  assert.equal(await page.locator("#main").isVisible(), false);
  assert.equal(await page.evaluate(() => document.activeElement.id), "token");
  await page.keyboard.type(TOKEN);
  await page.keyboard.press("Enter");
  await page.locator('body[data-link="live"]').waitFor();
});

await step("it shows every key, its traffic, its credit, and requests with reasons", async () => {
  for (const { label } of BALANCED) await row(label).waitFor();
  await until(async () => /\$\d/.test(await row("acme-2").locator('[data-label="Credit left"]').innerText()), "credit");
  await until(async () => (await page.locator("#requests-body .why").allInnerTexts()).some((text) => /LeastInFlight, of \d keys?: load \d/.test(text)), "a reason");
  await until(async () => Number(await page.locator("#rate").innerText()) > 5, "traffic");
  await shows("acme-poor", "resting", 30_000);
  assert.match(await row("acme-poor").innerText(), /key limit/);
});

await step("it is small", async () => {
  let bytes = 0;
  for (const path of files) bytes += (await (await fetch(admin + path)).arrayBuffer()).byteLength;
  assert(files.size >= 4 && bytes < MOST_BYTES, `${bytes} bytes in ${[...files]}`);
  return `${bytes} bytes in ${files.size} files`;
});

await step("details of a request are opened by keyboard and stay", async () => {
  const button = page.locator("#requests-body button").first();
  await button.focus();
  const name = await page.evaluate(() => document.activeElement.getAttribute("aria-label"));
  await page.keyboard.press("Enter");
  await page.locator(".steps").waitFor();
  await sleep(2500);
  assert.equal(await page.locator(".steps").count(), 1);
  assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), name);
  await page.screenshot({ path: join(folder, "page-details.png"), fullPage: true });
  await page.keyboard.press("Enter");
  await page.locator(".steps").waitFor({ state: "detached" });
});

await step("a key that dies is shown within 2 s", async () => {
  await shows("acme-2", "in");
  await manage(upstream, "acme-2", "PATCH", { disabled: true });
  const start = Date.now();
  await shows("acme-2", "resting", SOON_MS);
  const took = Date.now() - start;
  assert.match(await row("acme-2").innerText(), /invalid key/);
  await until(async () => /invalid key/.test(await page.locator("#causes-body").innerText()), "its cause");
  return `${took} ms`;
});

await step("under load it is laid out well, and its text has contrast", () => looked("load"));

await step("a model that is full at all its providers is shown, and how long still", async () => {
  assert.equal(await page.locator("#rests").isVisible(), false, "nothing rests yet");
  const asking = new AbortController();
  const body = JSON.stringify({ model: "acme/full-3", messages: [{ role: "user", content: "Say one word." }] });
  const asked = fetch(`${api}/v1/chat/completions`, { method: "POST", headers: { "content-type": "application/json" }, body, signal: asking.signal });
  asked.catch(() => {}); // it waits until it is given up below
  const rest = page.locator("#rests-body li");
  await rest.waitFor({ timeout: SOON_MS });
  assert.match(await rest.innerText(), /acme\/full-3 at all providers\s+provider limit\s+1[0-5] s left\s+as upstream asked/);
  const left = async () => Number((await rest.locator(".left").innerText()).split(" ")[0]);
  const before = await left();
  await until(async () => (await left()) <= before - 2, "the countdown");
  await looked("rests");
  asking.abort();
  await rest.waitFor({ state: "detached" });
  assert.equal(await page.locator("#rests").isVisible(), false, "it is over");
});

await step("the key that lives again is put back at once by keyboard", async () => {
  await manage(upstream, "acme-2", "PATCH", { disabled: false });
  assert.equal(await state("acme-2"), "resting");
  const before = await used(upstream, "acme-2");
  await press("Reset acme-2");
  await shows("acme-2", "in", SOON_MS);
  await until(async () => (await used(upstream, "acme-2")) > before, "the simulator to see it used");
});

for (const [button, label, words] of [
  ["Drain", "globex-1", ["draining", "drained"]],
  ["Isolate", "acme-1", ["isolated"]],
]) {
  await step(`${button} by keyboard: the key is used no more, and again after Reset`, async () => {
    // what is shown for a moment only
    await row(label).evaluate((tr) => {
      window.seen = [];
      new MutationObserver(() => window.seen.push(tr.dataset.state)).observe(tr, { attributeFilter: ["data-state"] });
    });
    const answered = page.waitForResponse(/\/keys\//);
    await press(`${button} ${label}`);
    const { in_flight: running } = await (await answered).json();
    await until(async () => {
      const now = await state(label);
      return now === words.at(-1) && (await row(label).locator('[data-label="In flight"]').innerText()).endsWith("0");
    }, `${label} to be ${words.at(-1)}`);
    const seen = await page.evaluate(() => window.seen);
    if (running > 0) assert(seen.includes(words[0]), `with ${running} in flight it was never shown as ${words[0]}: ${seen}`);
    assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), `${button} ${label}`);
    assert.match(await page.locator("#said").innerText(), new RegExp(label));
    const before = await used(upstream, label);
    const others = traffic.counts.ok;
    await sleep(2500);
    assert.equal(await used(upstream, label), before, "the simulator sees it used");
    assert(traffic.counts.ok > others + 10, "the others serve on");
    if (button === "Isolate") await looked("isolated");
    await press(`Reset ${label}`);
    await shows(label, "in", SOON_MS);
    await until(async () => (await used(upstream, label)) > before, "the simulator to see it used again");
  });
}

await step("no client was turned away meanwhile", async () => {
  assert(traffic.counts.ok > 100, `${traffic.counts.ok}`);
  assert.equal(traffic.counts.failed, 0);
});

await step("no key and no token is on the page or in what it was told", async () => {
  const shown = await page.evaluate(() => document.documentElement.outerHTML);
  const told = await fetch(`${admin}/events`, { headers: { authorization: `Bearer ${TOKEN}` } });
  const { value } = await told.body.getReader().read();
  const text = shown + Buffer.from(value).toString();
  for (const { label, secret } of KEYS) assert(!text.includes(secret.slice(-12)), label);
  assert(!text.includes(TOKEN));
});

const calm = heard.length;
await step("a gateway that stops is told of, and the page comes back with it", async () => {
  await traffic.stop();
  gateway.stop();
  await page.locator('body[data-link="lost"]').waitFor();
  assert.match(await page.locator("#link-text").innerText(), /stopping|lost|answered/);
  await page.screenshot({ path: join(folder, "page-lost.png") });
  await gateway.end;
  gateway = await up(api.slice(7), admin.slice(7));
  traffic = load(api, 4);
  await page.locator('body[data-link="live"]').waitFor({ timeout: PATIENCE_MS });
  await until(async () => (await state("acme-1")) === "in", "the keys");
  // that a connection is refused, the browser says itself
  const other = heard.slice(calm).filter((line) => !/ERR_CONNECTION|ERR_INCOMPLETE|ERR_EMPTY|503/.test(line));
  heard.length = calm;
  assert.deepEqual(other, []);
});

await traffic.stop();
await browser.close();
gateway.stop();
simulator.stop("SIGKILL");
await gateway.end;
assert(!gateway.output().includes("panicked"), gateway.output());
rmSync(scratch, { recursive: true, force: true });
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed || !passed ? 1 : 0);
