"""OpenAI's Python client against a Dolphin endpoint, whatever model it serves."""

import asyncio
import json
import os
import time
import urllib.request

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

ROOT = os.environ["DOLPHIN_URL"].rstrip("/").removesuffix("/v1")
KEY = os.environ.get("DOLPHIN_KEY") or "none"
OPTIONS = {"base_url": f"{ROOT}/v1", "max_retries": 0, "timeout": 120}
MESSAGES = [{"role": "user", "content": "Once upon a time"}]
# The model may want to end early; the length of the reply is part of several tests.
NO_END = {"extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="session")
def client():
    return openai.OpenAI(api_key=KEY, **OPTIONS)


@pytest.fixture(scope="session")
def model(client):
    return os.environ.get("DOLPHIN_MODEL") or client.models.list().data[0].id


@pytest.fixture(scope="session")
def chat(client, model):
    def call(messages=MESSAGES, **options):
        return client.chat.completions.create(model=model, messages=messages, **options)

    return call


@pytest.fixture(scope="session")
def complete(client, model):
    def call(prompt="Once upon a time", **options):
        return client.completions.create(model=model, prompt=prompt, **options)

    return call


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


# Models


def test_models_are_listed_and_retrieved(client, model):
    listed = client.models.list()
    assert model in [entry.id for entry in listed]
    one = client.models.retrieve(model)
    assert (one.id, one.object) == (model, "model")
    assert one.created > 0 and one.owned_by


# Chat


def test_chat(chat):
    reply = chat(max_tokens=8)
    ChatCompletion.model_validate(reply.model_dump(), strict=True)
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert isinstance(reply.choices[0].message.content, str)
    assert reply.choices[0].finish_reason in ("stop", "length")
    usage = reply.usage
    assert usage.prompt_tokens > 0 and 0 < usage.completion_tokens <= 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_chat_stream_equals_the_whole(chat):
    options = {"max_tokens": 24, "temperature": 0, **NO_END}
    whole = chat(**options).choices[0].message.content
    chunks = list(chat(stream=True, **options))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert text_of(chunks) == whole
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_stream_helper(client, model):
    with client.chat.completions.stream(model=model, messages=MESSAGES, max_tokens=8) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        whole = stream.current_completion_snapshot.choices[0].message.content
    assert "".join(deltas) == (whole or "")


def test_usage_chunk(chat):
    chunks = list(chat(max_tokens=5, stream=True, stream_options={"include_usage": True}, **NO_END))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_n_choices(chat):
    reply = chat(n=2, max_tokens=8, temperature=0)
    assert [choice.index for choice in reply.choices] == [0, 1]
    first, second = (choice.message.content for choice in reply.choices)
    assert first == second
    seen = {}
    for chunk in chat(n=2, max_tokens=8, temperature=0, stream=True):
        for choice in chunk.choices:
            seen[choice.index] = seen.get(choice.index, "") + (choice.delta.content or "")
    assert seen == {0: first, 1: first}


def test_choices_of_one_request_differ(chat):
    reply = chat(n=4, seed=5, temperature=2, max_tokens=24, **NO_END)
    assert len({choice.message.content for choice in reply.choices}) > 1


def test_roles_and_parts(chat):
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": "ann"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "And now?"},
    ]
    assert chat(messages, max_tokens=4).usage.completion_tokens > 0


def test_ignored_parameters_are_accepted(chat):
    chat(max_completion_tokens=4, user="someone", metadata={"a": "b"}, store=False, response_format={"type": "text"})


# Determinism


def test_temperature_zero_is_deterministic(chat):
    options = {"temperature": 0, "max_tokens": 24, **NO_END}
    assert chat(**options).choices[0].message.content == chat(seed=3, **options).choices[0].message.content


def test_a_seed_fixes_the_reply(chat):
    def reply(seed):
        return chat(seed=seed, temperature=1.5, max_tokens=24, **NO_END).choices[0].message.content

    assert reply(11) == reply(11)
    assert len({reply(seed) for seed in range(6)}) > 1


# Limits, stops, bias, log-probabilities


def test_max_tokens_ends_with_length(chat):
    reply = chat(max_tokens=3, **NO_END)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 3


@pytest.mark.parametrize("stream", [False, True])
def test_stop(chat, stream):
    options = {"temperature": 0, "max_tokens": 48, **NO_END}
    whole = chat(**options).choices[0].message.content
    assert len(whole) > 8, "the model says too little for this test"
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    reply = chat(stop=[stop, "\x00never\x00"], stream=stream, **options)
    if stream:
        chunks = list(reply)
        text, finish = text_of(chunks), [c.choices[0].finish_reason for c in chunks if c.choices][-1]
    else:
        text, finish = reply.choices[0].message.content, reply.choices[0].finish_reason
    assert text == whole[: whole.index(stop)]
    assert finish == "stop"


def forced(chat, bias):
    reply = chat(temperature=0, max_tokens=3, logit_bias=bias, logprobs=True, **NO_END)
    return [entry.bytes for entry in reply.choices[0].logprobs.content]


def test_logit_bias_forces_and_bans(chat):
    replies = {token: forced(chat, {str(token): 100}) for token in range(90, 110)}
    visible = {token: drawn for token, drawn in replies.items() if drawn and drawn[0]}
    assert all(drawn == [drawn[0]] * 3 for drawn in visible.values())
    (first, first_drawn), (second, second_drawn) = list(visible.items())[:2]
    assert first_drawn != second_drawn
    assert forced(chat, {str(first): -100, str(second): 100}) == second_drawn
    assert forced(chat, {str(first): 100, str(second): -100}) == first_drawn


def test_chat_logprobs(chat):
    reply = chat(max_tokens=12, temperature=0, logprobs=True, top_logprobs=3, **NO_END)
    entries = reply.choices[0].logprobs.content
    assert entries
    joined = bytes(byte for entry in entries for byte in entry.bytes)
    assert reply.choices[0].message.content.strip() in joined.decode(errors="replace")
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert entry.top_logprobs[0].token == entry.token
    options = {"max_tokens": 12, "temperature": 0, "logprobs": True, "stream": True, **NO_END}
    streamed = [e.token for c in chat(**options) for e in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])]
    assert streamed == [entry.token for entry in entries]


# Completions


def test_completion(complete):
    reply = complete(max_tokens=6, **NO_END)
    Completion.model_validate(reply.model_dump(), strict=True)
    assert reply.object == "text_completion"
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 6


def test_completion_stream_equals_the_whole(complete):
    options = {"max_tokens": 16, "temperature": 0, **NO_END}
    whole = complete(**options).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in complete(stream=True, **options)) == whole


def test_list_prompts(complete):
    options = {"max_tokens": 8, "temperature": 0}
    prompts = ["The cat", "A dog"]
    reply = complete(prompts, n=2, **options)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    alone = [complete(prompt, **options).choices[0].text for prompt in prompts]
    assert [choice.text for choice in reply.choices] == [alone[0], alone[0], alone[1], alone[1]]


def test_token_prompts(complete):
    options = {"max_tokens": 8, "temperature": 0}
    tokens = [100, 101, 102]
    reply = complete(tokens, **options)
    assert reply.usage.prompt_tokens == 3
    both = complete([tokens, [103]], **options)
    assert both.choices[0].text == reply.choices[0].text
    assert both.usage.prompt_tokens == 4


def test_completion_logprobs(complete):
    reply = complete(max_tokens=6, temperature=0, logprobs=2, **NO_END)
    logprobs = reply.choices[0].logprobs
    count = len(logprobs.tokens)
    assert count == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    assert all(value <= 0 for value in logprobs.token_logprobs)
    assert all(name in top for name, top in zip(logprobs.tokens, logprobs.top_logprobs))


# Errors


def test_wrong_key(client):
    if KEY == "none":
        pytest.skip("the endpoint is open")
    with pytest.raises(openai.AuthenticationError) as raised:
        openai.OpenAI(api_key="wrong", **OPTIONS).models.list()
    assert raised.value.code == "invalid_api_key"


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_bad_requests_name_the_parameter(chat, options, param):
    with pytest.raises(openai.BadRequestError) as raised:
        chat(**options)
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"


def test_a_prompt_beyond_the_context(chat, client, model):
    context = client.models.retrieve(model).model_extra["max_model_len"]
    with pytest.raises(openai.BadRequestError) as raised:
        chat([{"role": "user", "content": "a b " * context}])
    assert raised.value.code == "context_length_exceeded"


# Going away, and many at once


def in_flight():
    with urllib.request.urlopen(f"{ROOT}/metrics") as page:
        lines = page.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("dolphin_gateway_requests_in_flight "))


def test_abort_mid_stream(chat):
    stream = chat(max_tokens=100_000, stream=True, **NO_END)
    next(stream)
    stream.close()
    limit = time.monotonic() + 20
    while in_flight() > 0:
        assert time.monotonic() < limit, "the reply went on without its client"
        time.sleep(0.05)
    assert chat(max_tokens=2).usage.completion_tokens > 0


def test_many_at_once(model):
    async def run():
        async with openai.AsyncOpenAI(api_key=KEY, **{**OPTIONS, "max_retries": 8}) as client:

            async def one(index):
                options = {"temperature": 0, "max_tokens": 8, "messages": MESSAGES, "model": model}
                if index % 2:
                    return (await client.chat.completions.create(**options)).choices[0].message.content
                stream = await client.chat.completions.create(stream=True, **options)
                return text_of([chunk async for chunk in stream])

            return await asyncio.gather(*(one(index) for index in range(16)))

    replies = asyncio.run(run())
    assert len(set(replies)) == 1


def test_health():
    with urllib.request.urlopen(f"{ROOT}/health") as page:
        assert json.load(page)["status"] == "ok"
