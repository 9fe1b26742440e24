// Opens reports of the lab in a real browser: narrow and wide, by day and by night, and on paper.
//
//     node tests/browser/report.mjs SCREENSHOTS REPORT.html...
//
// Prints one line a case and, last, `N passed, N failed`. Keeps a screenshot of each case in the folder SCREENSHOTS.
// The browser is the one that the environment names as CHROMIUM, or /usr/bin/chromium.

import { mkdirSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [folder, ...reports] = process.argv.slice(2);
const WIDTHS = [1280, 390];
const SCHEMES = ["light", "dark"];
const UNITS = /, (min|s|h|requests\/s|requests|USD)\b|part of|per |attempts\/s|share|of those/;

/** What is wrong with the page as it is laid out, as sentences. */
function problems(units) {
  const found = [];
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    const wide = [...document.querySelectorAll("body *")].find(
      (element) => element.getBoundingClientRect().right > root.clientWidth + 1 && !element.closest(".scroll"),
    );
    found.push(`scrolls sideways by ${root.scrollWidth - root.clientWidth} px: ${wide?.outerHTML.slice(0, 120)}`);
  }
  const charts = [...document.querySelectorAll("svg:not([aria-hidden])")];
  if (charts.length === 0) found.push("has no chart");
  const unit = new RegExp(units);
  for (const chart of charts) {
    const title = chart.querySelector("title")?.textContent.trim() ?? "";
    const name = title || chart.outerHTML.slice(0, 80);
    const { width, height } = chart.getBoundingClientRect();
    const texts = [...chart.querySelectorAll("text")];
    if (!title) found.push(`a chart without a title: ${name}`);
    if (!chart.closest("figure")?.querySelector("figcaption")?.textContent.trim()) found.push(`no caption: ${name}`);
    if (width < 200 || height < 60) found.push(`${width} × ${height} px: ${name}`);
    if (!texts.some((text) => unit.test(text.textContent))) found.push(`no axis with a unit: ${name}`);
    const frame = chart.getBoundingClientRect();
    for (const text of texts) {
      const box = text.getBoundingClientRect();
      const outside = box.left < frame.left - 2 || box.right > frame.right + 2 || box.bottom > frame.bottom + 2;
      if (outside) found.push(`“${text.textContent.trim()}” is cut off: ${name}`);
    }
    if (chart.innerHTML.includes("NaN")) found.push(`a point is not a number: ${name}`);
  }
  for (const table of document.querySelectorAll("table")) {
    if (!table.caption || !table.querySelector("th[scope]")) found.push("a table without caption or headings");
    if (/NaN|undefined|null/.test(table.textContent)) found.push("a table with a value that is none");
  }
  const outside = [...document.querySelectorAll("script, link[href^=http], img, iframe")];
  if (outside.length) found.push(`needs more than itself: ${outside[0].outerHTML}`);
  return found;
}

/** Luminance contrast of text to page, as WCAG has it. */
function contrast() {
  const channels = (color) => color.match(/[\d.]+/g).slice(0, 3).map((value) => value / 255);
  const luminance = (color) => {
    const [red, green, blue] = channels(color).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const page = luminance(getComputedStyle(document.body).backgroundColor);
  const ratio = (color) => (Math.max(page, luminance(color)) + 0.05) / (Math.min(page, luminance(color)) + 0.05);
  const labels = [...document.querySelectorAll("svg text")].map((text) => getComputedStyle(text).fill);
  return Math.min(ratio(getComputedStyle(document.body).color), ...[...new Set(labels)].map(ratio));
}

async function opened(browser, report, width, scheme) {
  const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme: scheme });
  const heard = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) heard.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => heard.push(`page error: ${error.message}`));
  page.on("request", (request) => {
    if (!/^(file|data):/.test(request.url())) heard.push(`asks for ${request.url()}`);
  });
  await page.goto(pathToFileURL(resolve(report)).href);
  heard.push(...(await page.evaluate(problems, UNITS.source)));
  const ratio = await page.evaluate(contrast);
  if (ratio < 4.5) heard.push(`text has a contrast of ${ratio.toFixed(1)} to the page, less than 4.5`);
  const name = join(folder, `${basename(report, ".html")}-${width}-${scheme}`);
  await page.screenshot({ path: `${name}.png`, fullPage: true });
  if (width === WIDTHS[0] && scheme === "light") {
    await page.pdf({ path: `${name}.pdf`, format: "A4", landscape: true, printBackground: true });
  }
  await page.close();
  return heard;
}

mkdirSync(folder, { recursive: true });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});
let [passed, failed] = [0, 0];
for (const report of reports) {
  for (const width of WIDTHS) {
    for (const scheme of SCHEMES) {
      const heard = await opened(browser, report, width, scheme);
      console.log(`${heard.length ? "FAILED" : "ok"}  ${basename(report)} at ${width} px, ${scheme}`);
      for (const problem of heard.slice(0, 20)) console.log(`        ${problem}`);
      if (heard.length) failed += 1;
      else passed += 1;
    }
  }
}
await browser.close();
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed || !passed ? 1 : 0);
