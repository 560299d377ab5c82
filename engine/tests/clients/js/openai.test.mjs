// OpenAI's JavaScript client against a Dolphin endpoint, whatever model it serves.

import assert from "node:assert/strict";
import { before, test } from "node:test";

import OpenAI from "openai";

const root = process.env.DOLPHIN_URL.replace(/\/+$/, "").replace(/\/v1$/, "");
const key = process.env.DOLPHIN_KEY || "none";
const options = { baseURL: `${root}/v1`, maxRetries: 0, timeout: 120_000 };
const client = new OpenAI({ apiKey: key, ...options });
const messages = [{ role: "user", content: "Once upon a time" }];
// The model may want to end early; the length of the reply is part of several tests.
const noEnd = { ignore_eos: true };
let model;

const chat = (extra = {}, request = undefined) =>
  client.chat.completions.create({ model, messages, ...extra }, request);
const complete = (extra = {}) => client.completions.create({ model, prompt: "Once upon a time", ...extra });

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");

before(async () => {
  model = process.env.DOLPHIN_MODEL || (await client.models.list()).data[0].id;
});

test("models are listed and retrieved", async () => {
  const ids = [];
  for await (const entry of client.models.list()) ids.push(entry.id);
  assert.ok(ids.includes(model));
  const one = await client.models.retrieve(model);
  assert.equal(one.id, model);
  assert.equal(one.object, "model");
});

test("chat", async () => {
  const reply = await chat({ max_tokens: 8 });
  assert.equal(reply.object, "chat.completion");
  assert.equal(reply.choices[0].message.role, "assistant");
  assert.equal(typeof reply.choices[0].message.content, "string");
  assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
});

test("a chat stream equals the whole", async () => {
  const extra = { max_tokens: 24, temperature: 0, ...noEnd };
  const whole = (await chat(extra)).choices[0].message.content;
  const chunks = await collect(await chat({ ...extra, stream: true }));
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.equal(textOf(chunks), whole);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "length");
  assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
});

test("the stream helper", async () => {
  const stream = client.chat.completions.stream({ model, messages, max_tokens: 8 });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const final = await stream.finalChatCompletion();
  assert.equal(text, final.choices[0].message.content ?? "");
});

test("the usage chunk", async () => {
  const extra = { max_tokens: 5, stream: true, stream_options: { include_usage: true }, ...noEnd };
  const chunks = await collect(await chat(extra));
  assert.deepEqual(chunks.at(-1).choices, []);
  assert.equal(chunks.at(-1).usage.completion_tokens, 5);
});

test("n choices", async () => {
  const reply = await chat({ n: 2, max_tokens: 8, temperature: 0 });
  assert.deepEqual(reply.choices.map((choice) => choice.index), [0, 1]);
  assert.equal(reply.choices[0].message.content, reply.choices[1].message.content);
  const seen = ["", ""];
  for await (const chunk of await chat({ n: 2, max_tokens: 8, temperature: 0, stream: true })) {
    for (const choice of chunk.choices) seen[choice.index] += choice.delta.content ?? "";
  }
  assert.deepEqual(seen, reply.choices.map((choice) => choice.message.content));
});

test("temperature zero and a seed fix the reply", async () => {
  const reply = async (extra) => (await chat({ max_tokens: 24, ...noEnd, ...extra })).choices[0].message.content;
  assert.equal(await reply({ temperature: 0 }), await reply({ temperature: 0, seed: 3 }));
  assert.equal(await reply({ temperature: 1.5, seed: 11 }), await reply({ temperature: 1.5, seed: 11 }));
  const seeds = await Promise.all([0, 1, 2, 3, 4, 5].map((seed) => reply({ temperature: 1.5, seed })));
  assert.ok(new Set(seeds).size > 1);
});

test("max_tokens ends with length", async () => {
  const reply = await chat({ max_tokens: 3, ...noEnd });
  assert.equal(reply.choices[0].finish_reason, "length");
  assert.equal(reply.usage.completion_tokens, 3);
});

test("stop", async () => {
  const extra = { temperature: 0, max_tokens: 48, ...noEnd };
  const whole = (await chat(extra)).choices[0].message.content;
  assert.ok(whole.length > 8, "the model says too little for this test");
  const characters = Array.from(whole);
  const middle = Math.floor(characters.length / 2);
  const stop = characters.slice(middle, middle + 3).join("");
  const expected = whole.slice(0, whole.indexOf(stop));
  const reply = await chat({ ...extra, stop: [stop, "\0never\0"] });
  assert.equal(reply.choices[0].message.content, expected);
  assert.equal(reply.choices[0].finish_reason, "stop");
  const chunks = await collect(await chat({ ...extra, stop, stream: true }));
  assert.equal(textOf(chunks), expected);
});

test("logit_bias forces and bans", async () => {
  const forced = async (logit_bias) => {
    const reply = await chat({ temperature: 0, max_tokens: 3, logit_bias, logprobs: true, ...noEnd });
    return reply.choices[0].logprobs.content.map((entry) => entry.bytes);
  };
  const visible = [];
  for (let token = 90; token < 110 && visible.length < 2; token++) {
    const drawn = await forced({ [token]: 100 });
    if (drawn[0]?.length) visible.push({ token, drawn });
  }
  const [first, second] = visible;
  assert.deepEqual(first.drawn, Array(3).fill(first.drawn[0]));
  assert.notDeepEqual(first.drawn, second.drawn);
  assert.deepEqual(await forced({ [first.token]: -100, [second.token]: 100 }), second.drawn);
});

test("logprobs", async () => {
  const extra = { max_tokens: 12, temperature: 0, logprobs: true, top_logprobs: 3, ...noEnd };
  const reply = await chat(extra);
  const entries = reply.choices[0].logprobs.content;
  assert.ok(entries.length > 0);
  for (const entry of entries) {
    assert.ok(entry.logprob <= 0);
    assert.equal(entry.top_logprobs.length, 3);
    assert.equal(entry.top_logprobs[0].token, entry.token);
  }
  const chunks = await collect(await chat({ ...extra, stream: true }));
  const streamed = chunks.flatMap((chunk) => chunk.choices[0].logprobs?.content ?? []);
  assert.deepEqual(streamed.map((entry) => entry.token), entries.map((entry) => entry.token));
});

test("completions", async () => {
  const extra = { max_tokens: 8, temperature: 0, ...noEnd };
  const whole = await complete(extra);
  assert.equal(whole.object, "text_completion");
  assert.equal(whole.choices[0].finish_reason, "length");
  const chunks = await collect(await complete({ ...extra, stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), whole.choices[0].text);
});

test("list prompts and token prompts", async () => {
  const extra = { max_tokens: 8, temperature: 0 };
  const prompts = ["The cat", "A dog"];
  const both = await complete({ ...extra, prompt: prompts });
  const alone = await Promise.all(prompts.map((prompt) => complete({ ...extra, prompt })));
  assert.deepEqual(both.choices.map((c) => c.text), alone.map((reply) => reply.choices[0].text));
  const tokens = await complete({ ...extra, prompt: [100, 101, 102] });
  assert.equal(tokens.usage.prompt_tokens, 3);
  const lists = await complete({ ...extra, prompt: [[100, 101, 102], [103]] });
  assert.equal(lists.choices[0].text, tokens.choices[0].text);
});

test("completion logprobs", async () => {
  const reply = await complete({ max_tokens: 6, temperature: 0, logprobs: 2, ...noEnd });
  const { tokens, token_logprobs, top_logprobs, text_offset } = reply.choices[0].logprobs;
  assert.equal(tokens.length, token_logprobs.length);
  assert.equal(tokens.length, text_offset.length);
  tokens.forEach((token, index) => assert.ok(token in top_logprobs[index]));
});

test("errors have the client's classes", async (t) => {
  await assert.rejects(chat({ model: "no-such-model" }), (error) => {
    return error instanceof OpenAI.NotFoundError && error.code === "model_not_found";
  });
  await assert.rejects(client.models.retrieve("no-such-model"), OpenAI.NotFoundError);
  for (const [param, value] of [["temperature", 3], ["n", 0], ["logit_bias", { x: 1 }], ["messages", []]]) {
    await assert.rejects(chat({ [param]: value }), (error) => {
      return error instanceof OpenAI.BadRequestError && error.param === param;
    });
  }
  if (key === "none") return t.diagnostic("skipped: no key, the endpoint is open");
  const stranger = new OpenAI({ apiKey: "wrong", ...options });
  await assert.rejects(async () => await stranger.models.list(), OpenAI.AuthenticationError);
});

async function inFlight() {
  const text = await (await fetch(`${root}/metrics`)).text();
  return Number(/^dolphin_gateway_requests_in_flight (\S+)$/m.exec(text)[1]);
}

test("aborting a stream stops the reply", async () => {
  const controller = new AbortController();
  const stream = await chat({ max_tokens: 100_000, stream: true, ...noEnd }, { signal: controller.signal });
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    controller.abort();
  }
  const limit = Date.now() + 20_000;
  while ((await inFlight()) > 0) {
    assert.ok(Date.now() < limit, "the reply went on without its client");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.ok((await chat({ max_tokens: 2 })).usage.completion_tokens > 0);
});

test("many at once", async () => {
  const patient = new OpenAI({ apiKey: key, ...options, maxRetries: 8 });
  const one = () => patient.chat.completions.create({ model, messages, temperature: 0, max_tokens: 8 });
  const replies = await Promise.all(Array.from({ length: 16 }, one));
  assert.equal(new Set(replies.map((reply) => reply.choices[0].message.content)).size, 1);
});
