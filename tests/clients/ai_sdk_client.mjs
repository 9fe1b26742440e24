// npm `@openrouter/ai-sdk-provider` under `ai`: the behaviour of streams and errors in the Vercel AI SDK.

import assert from "node:assert/strict";
import { createOpenRouter } from "@openrouter/ai-sdk-provider";
import { APICallError, generateText, streamText } from "ai";
import { KEY, MESSAGES, all, checkHint, checkReply, run, thrown } from "./harness.mjs";

const settings = (item) => ({
  model: createOpenRouter({ apiKey: KEY, baseURL: `${item.base}/api/v1` }).chat(item.model),
  messages: MESSAGES,
  maxRetries: 0,
});

/** Starts a stream and hands back its parts, errors among them. */
const parts = (item) => all(streamText({ ...settings(item), onError: () => {} }).fullStream);

function check(error, item) {
  assert.ok(APICallError.isInstance(error), `${error?.name}: ${error?.message}`);
  assert.equal(error.statusCode, item.status);
  assert.equal(JSON.parse(error.responseBody).error.code, item.status);
  checkHint(error.responseHeaders["retry-after"], item);
}

await run("npm @openrouter/ai-sdk-provider", {
  chat: async (item) => {
    const answer = await generateText(settings(item));
    const { inputTokens, outputTokens, totalTokens } = answer.usage;
    checkReply(answer.text, inputTokens, outputTokens, totalTokens);
    assert.equal(answer.finishReason, "stop");
    assert.ok(answer.providerMetadata.openrouter.usage.cost > 0);
  },
  stream: async (item) => {
    const stream = await parts(item);
    const text = stream.filter((part) => part.type === "text-delta").map((part) => part.text);
    const finish = stream.find((part) => part.type === "finish");
    const { inputTokens, outputTokens, totalTokens } = finish.totalUsage;
    checkReply(text.join(""), inputTokens, outputTokens, totalTokens);
    assert.equal(finish.finishReason, "stop");
  },
  // The provider has no call for it; applications use fetch.
  models: async (item) => {
    const answer = await fetch(`${item.base}/api/v1/models`, { headers: { authorization: `Bearer ${KEY}` } });
    assert.equal(answer.status, 200);
    const { data } = await answer.json();
    assert.ok(data.some((model) => model.id === item.model));
  },
  error: async (item) => check(await thrown(() => generateText(settings(item))), item),
  "stream error": async (item) => {
    const failure = (await parts(item)).find((part) => part.type === "error");
    check(failure?.error, item);
  },
  "in-band": async (item) => {
    const stream = await parts(item);
    assert.equal(stream.filter((part) => part.type === "text-delta").length, 2);
    const failure = stream.find((part) => part.type === "error");
    assert.equal(failure?.error.code, item.status, JSON.stringify(failure));
  },
  broken: async (item) => {
    const stream = await parts(item);
    assert.equal(stream.filter((part) => part.type === "text-delta").length, 2);
    const failure = stream.find((part) => part.type === "error");
    assert.ok(failure, "no error");
    if (item.told) assert.equal(failure.error.metadata?.reason, "truncated", JSON.stringify(failure));
  },
});
