"""Replies through OpenAI's Python client, all at once; for each a line of JSON that says what it cost.

usage: paid.py URL COUNT TOKENS
"""

import asyncio
import json
import sys

import openai

QUESTION = [{"role": "user", "content": "What is Dolphin?"}]


async def cost(client, model, seed, tokens):
    options = {"model": model, "messages": QUESTION, "seed": seed, "max_tokens": tokens, "extra_body": {"ignore_eos": True}}
    if seed % 2:
        stream = await client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options)
        chunks = [chunk async for chunk in stream]
        header, usage = None, chunks[-1].usage
    else:
        reply = await client.chat.completions.with_raw_response.create(**options)
        header, usage = reply.headers["x-dolphin-cost"], reply.parse().usage
    return {"header": header, "usage": usage.model_dump()}


async def main(url, count, tokens):
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as client:
        model = (await client.models.list()).data[0].id
        for reply in await asyncio.gather(*(cost(client, model, seed, tokens) for seed in range(count))):
            print(json.dumps(reply))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
