// What the JavaScript clients share: the cases come from the runner, one line a case goes back.

import assert from "node:assert/strict";

export const KEY = process.env.CLIENT_KEY ?? "";
export const MESSAGES = [{ role: "user", content: "Say six words." }];
const TOKENS = 6; // the length of every reply, by scenario.toml

/** Runs each case with the step named by its `do`. */
export async function run(client, steps) {
  for (const item of JSON.parse(process.env.CASES)) {
    try {
      await steps[item.do](item);
      console.log(`ok   ${client}: ${item.name}`);
    } catch (error) {
      // A case fails, the others still run.
      const what = String(error?.message ?? error).split(/\s+/).join(" ").slice(0, 300);
      console.log(`FAIL ${client}: ${item.name}: ${error?.name}: ${what}`);
    }
  }
}

/** A whole reply of known length with the usage that belongs to it. */
export function checkReply(text, prompt, completion, total) {
  assert.equal(text.trim().split(/\s+/).length, TOKENS, `text ${text}`);
  assert.ok(prompt > 0);
  assert.equal(completion, TOKENS);
  assert.equal(total, prompt + completion);
}

/** `Retry-After` in whole seconds, where the case wants one. */
export function checkHint(hint, item) {
  if (item.hint) assert.match(String(hint), /^[1-9][0-9]*$/, "Retry-After");
}

/** The error that `action` throws. */
export async function thrown(action) {
  let answer;
  try {
    answer = await action();
  } catch (error) {
    return error;
  }
  assert.fail(`no error but ${JSON.stringify(answer)}`);
}

/** All items of an asynchronous sequence. */
export async function all(sequence) {
  const items = [];
  for await (const item of sequence) items.push(item);
  return items;
}
