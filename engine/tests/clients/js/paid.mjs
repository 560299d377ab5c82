// Replies through OpenAI's JavaScript client, all at once; for each a line of JSON that says what it cost.
//
// usage: paid.mjs URL COUNT TOKENS

import OpenAI from "openai";

const [baseURL, count, tokens] = process.argv.slice(2);
const client = new OpenAI({ apiKey: "none", baseURL, maxRetries: 0, timeout: 120_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is Dolphin?" }];

async function cost(seed) {
  const options = { model, messages, seed, max_tokens: Number(tokens), ignore_eos: true };
  if (seed % 2) {
    const stream = await client.chat.completions.create({ ...options, stream: true, stream_options: { include_usage: true } });
    let usage;
    for await (const chunk of stream) usage = chunk.usage ?? usage;
    return { usage };
  }
  const { data, response } = await client.chat.completions.create(options).withResponse();
  return { header: response.headers.get("x-dolphin-cost"), usage: data.usage };
}

const replies = await Promise.all(Array.from({ length: Number(count) }, (_, seed) => cost(seed)));
for (const reply of replies) console.log(JSON.stringify(reply));
