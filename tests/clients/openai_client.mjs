// npm `openai`: plain OpenAI compatibility.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { KEY, MESSAGES, all, checkHint, checkReply, run, thrown } from "./harness.mjs";

const ERRORS = {
  400: OpenAI.BadRequestError,
  401: OpenAI.AuthenticationError,
  403: OpenAI.PermissionDeniedError,
  404: OpenAI.NotFoundError,
  422: OpenAI.UnprocessableEntityError,
  429: OpenAI.RateLimitError,
};

const client = (item) =>
  new OpenAI({ baseURL: `${item.base}/api/v1`, apiKey: KEY, maxRetries: 0, timeout: 30_000 });
const ask = (item, stream) =>
  client(item).chat.completions.create({ model: item.model, messages: MESSAGES, stream });

async function failed(item, stream) {
  const error = await thrown(() => ask(item, stream));
  const other = item.status >= 500 ? OpenAI.InternalServerError : OpenAI.APIError;
  assert.equal(error.constructor, ERRORS[item.status] ?? other);
  assert.equal(error.status, item.status);
  assert.equal(error.error.code, item.status);
  assert.ok(error.error.message);
  checkHint(error.headers.get("retry-after"), item);
}

await run("npm openai", {
  chat: async (item) => {
    const answer = await ask(item, false);
    const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
    checkReply(answer.choices[0].message.content, prompt_tokens, completion_tokens, total_tokens);
    assert.equal(answer.choices[0].finish_reason, "stop");
  },
  stream: async (item) => {
    const chunks = await all(await ask(item, true));
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "");
    const { prompt_tokens, completion_tokens, total_tokens } = chunks.at(-1).usage;
    checkReply(text.join(""), prompt_tokens, completion_tokens, total_tokens);
    assert.equal(text.filter(Boolean).length, 6, "not in pieces");
  },
  models: async (item) => {
    const models = await all(client(item).models.list());
    assert.ok(models.some((model) => model.id === item.model));
  },
  error: (item) => failed(item, false),
  "stream error": (item) => failed(item, true),
  "in-band": async (item) => {
    let pieces = 0;
    const error = await thrown(async () => {
      for await (const _ of await ask(item, true)) pieces += 1;
    });
    assert.equal(pieces, 2);
    assert.ok(error instanceof OpenAI.APIError, error.name);
    assert.equal(error.error.code, item.status);
  },
  broken: async (item) => {
    const more = { model: item.model, stream: true };
    for (const begin of [
      () => client(item).chat.completions.create({ messages: MESSAGES, ...more }),
      () => client(item).completions.create({ prompt: "Say six words.", ...more }),
      () => client(item).responses.create({ input: "Say six words.", ...more }),
    ]) {
      let failed;
      try {
        for await (const event of await begin()) {
          if (["response.failed", "error"].includes(event.type)) failed = event;
        }
      } catch (error) {
        assert.ok(error instanceof OpenAI.APIError, `${error.name}: ${error.message}`);
        failed = error;
      }
      assert.ok(failed, "no error");
      if (item.told) assert.equal(failed.error.metadata.reason, "truncated");
    }
  },
});
