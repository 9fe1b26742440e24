// The last requests, each with the reasons for its key.
import { $, cell, made, plural, set, span, state, usd, whole, words } from "./draw.js";

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

export function showRequests() {
  const body = $("requests-body");
  // what is being read is not moved
  const held = open !== null && requestRows.has(open);
  const wasOpen = [...requestRows.keys()].find((id) => requestRows.get(id).details);
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
  } else if (!body.matches(":hover, :focus-within") || !body.children.length || requestRows.get(wasOpen)?.details) {
    const shown = state.picture.requests.map((request) => {
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
    const ids = new Set(state.picture.requests.map((request) => request.id));
    for (const id of requestRows.keys()) if (!ids.has(id)) requestRows.delete(id);
    const active = document.activeElement;
    body.replaceChildren(...shown.map((parts) => parts.tr));
    if (active && active !== document.activeElement && body.contains(active)) active.focus({ preventScroll: true });
  }
  const which = { all: "every one", asked: "up to 10 a second while this page is open, and those that ask", off: "none: start with --explain asked or all" };
  set($("requests-note"), held || body.matches(":hover, :focus-within") ? "held while you are at them" : which[state.picture.explain] ?? "");
  $("requests-none").hidden = state.picture.requests.length > 0;
  set($("requests-none"), state.picture.explain === "off" ? "No request is explained (--explain off)." : "None yet.");
}
