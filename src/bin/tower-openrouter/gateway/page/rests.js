// What rests for many keys at once, and how long still.
import { $, made, plural, set, span, state, words } from "./draw.js";

/** Whom a rest holds for: a name, and what to add. */
function whom({ scope, name, model }) {
  const asked = model ?? "requests that name no model";
  switch (scope) {
    case "egress":
      return ["Every request", "our own address, or all keys alike"];
    case "pool":
      return [asked, `at all providers${name ? `, through ${name}` : ""}`];
    case "account_model":
      return [asked, `on account ${name}`];
    case "free_tier":
      return ["Free models", `on account ${name}`];
    default:
      return [`${words(scope)} ${name ?? ""}`, "all its keys"];
  }
}

export function showRests() {
  const { rests, rests_in_all: all } = state.picture;
  $("rests").hidden = rests.length === 0;
  const left = all - rests.length;
  set($("rests-note"), `${plural(all, "rest")} that no single key is to blame for${left ? ` · the widest ${rests.length} are shown` : ""}`);
  $("rests-body").replaceChildren(
    ...rests.map((rest) => {
      const [name, more] = whom(rest);
      const who = made("span", { className: "who" }, made("b", { textContent: name }), ` ${more}`);
      const why = made("span", { className: "chip bad", textContent: words(rest.cause) });
      const time = made("span", { className: "left", textContent: `${span(rest.left_ms)} left` });
      const by = made("span", { className: "by", textContent: rest.hinted ? "as upstream asked" : "our own guess" });
      return made("li", {}, who, why, time, by);
    }),
  );
}
