// npm `@openrouter/sdk`: the official SDK, which rejects whatever deviates from its schema.

import assert from "node:assert/strict";
import { OpenRouter } from "@openrouter/sdk";
import * as errors from "@openrouter/sdk/models/errors";
import { KEY, MESSAGES, all, checkHint, checkReply, run, thrown } from "./harness.mjs";

const ERRORS = {
  400: errors.BadRequestResponseError,
  401: errors.UnauthorizedResponseError,
  402: errors.PaymentRequiredResponseError,
  403: errors.ForbiddenResponseError,
  404: errors.NotFoundResponseError,
  408: errors.RequestTimeoutResponseError,
  413: errors.PayloadTooLargeResponseError,
  422: errors.UnprocessableEntityResponseError,
  429: errors.TooManyRequestsResponseError,
  500: errors.InternalServerResponseError,
  502: errors.BadGatewayResponseError,
  503: errors.ServiceUnavailableResponseError,
  524: errors.EdgeNetworkTimeoutResponseError,
  529: errors.ProviderOverloadedResponseError,
};

const client = (item) =>
  new OpenRouter({
    apiKey: KEY,
    serverURL: `${item.base}/api/v1`,
    retryConfig: { strategy: "none" }, // by default it repeats 5xx for an hour
    timeoutMs: 30_000,
  });
const ask = (item, stream) =>
  client(item).chat.send({ chatRequest: { model: item.model, messages: MESSAGES, stream } });

async function failed(item, stream) {
  const error = await thrown(() => ask(item, stream));
  assert.equal(error.constructor.name, ERRORS[item.status].name, error.message);
  assert.equal(error.statusCode, item.status);
  assert.equal(error.error.code, item.status);
  assert.ok(error.error.message);
  checkHint(error.headers.get("retry-after"), item);
}

await run("npm @openrouter/sdk", {
  chat: async (item) => {
    const answer = await ask(item, false);
    const { promptTokens, completionTokens, totalTokens } = answer.usage;
    checkReply(answer.choices[0].message.content, promptTokens, completionTokens, totalTokens);
    assert.equal(answer.choices[0].finishReason, "stop");
  },
  stream: async (item) => {
    const chunks = await all(await ask(item, true));
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "");
    const { promptTokens, completionTokens, totalTokens } = chunks.at(-1).usage;
    checkReply(text.join(""), promptTokens, completionTokens, totalTokens);
    assert.ok(chunks.every((chunk) => chunk.error === undefined));
  },
  models: async (item) => {
    const answer = await client(item).models.list();
    const models = answer.result.data;
    assert.ok(models.some((model) => model.id === item.model));
  },
  error: (item) => failed(item, false),
  "stream error": (item) => failed(item, true),
  "in-band": async (item) => {
    const chunks = await all(await ask(item, true));
    assert.equal(chunks.length, 3);
    assert.equal(chunks.at(-1).error.code, item.status);
  },
  broken: async (item) => {
    const chunks = [];
    let thrownHere;
    try {
      for await (const chunk of await ask(item, true)) chunks.push(chunk);
    } catch (error) {
      thrownHere = error; // of the upstream's own forms it rejects some, and of ours the unclean end
    }
    const told = chunks.filter((chunk) => chunk.error);
    assert.ok(told.length > 0 || thrownHere, "no error");
    if (item.told) assert.deepEqual([chunks.length, told[0]?.error.code], [3, 502]);
  },
});
