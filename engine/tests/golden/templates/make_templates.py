"""Renders the chat templates of this folder with transformers and writes cases.json.

    python make_templates.py

A case has template, messages, add_generation_prompt, bos_token, eos_token, where needed tools and extra (more variables of the
template), and either expected (the rendered text) or error (the message that the template raises).
"""

import json
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent
CHATML_TOKENS = ("<|endoftext|>", "<|im_end|>")
SENTENCE_TOKENS = ("<s>", "</s>")
TOKENS = {
    "chatml": CHATML_TOKENS, "qwen3_like": CHATML_TOKENS, "llama2": SENTENCE_TOKENS, "mistral": SENTENCE_TOKENS,
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"), "gemma_like": ("<bos>", "<eos>"), "macros": ("<s>", "<|end|>"),
}
DATE = {"date_string": "26 Jul 2024"}


def m(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


ONE = [m("user", "What is Dolphin?")]
SYSTEM = [m("system", "  You are brief. \n"), m("user", "Hello")]
TURNS = [m("system", "You are brief."), m("user", " Hi there \n"), m("assistant", "\nHello! "), m("user", "Zwölf <b>\"Bäume\"</b> & 日本 🐬?")]
TWO_USERS = [m("user", "One"), m("user", "Two")]
ENDS_WITH_ANSWER = [m("user", "Hi"), m("assistant", "Hello")]
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Tell the weather of a place, e.g. <Paris> & 'Köln'.",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string", "description": "The name\nof the place"},
        "days": {"type": "integer", "minimum": 1, "default": 3},
        "exact": {"type": "boolean", "default": False}},
        "required": ["place"]}}}
ADD = {"type": "function", "function": {
    "name": "add", "description": "Add two numbers.",
    "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]}}}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"place": "Köln", "days": 2, "exact": True, "note": None, "factor": 0.5}}}
CALLED = [m("user", "Weather in Köln?"), m("assistant", "", tool_calls=[CALL]), m("tool", "{\"sky\": \"clear\"}")]
CALLED_TWICE = [m("system", "Use the functions."), m("user", "Weather and 1+2?"),
                m("assistant", "<think>\nTwo calls.\n</think>\n\nLet me see.",
                  tool_calls=[CALL, {"type": "function", "function": {"name": "add", "arguments": "{\"a\": 1, \"b\": 2}"}}]),
                m("tool", "clear"), m("tool", "3")]
THOUGHT = [m("user", "First"), m("assistant", "<think>\nold thought\n</think>\n\nOld answer"), m("user", "Second"),
           m("assistant", "<think>\nnew thought\n</think>\n\nNew answer")]
REASONED = [m("user", "Q"), m("assistant", "A", reasoning_content="\nBecause.\n")]
PARTS = [m("system", "Look."), m("user", [{"type": "text", "text": " What is this? "}, {"type": "image"}])]
LINES = [m("system", "S"), m("user", "a  \n\nb\nc\nd"), m("user", "again\n"), m("assistant", "x"), m("user", "y")]

# template, messages, add_generation_prompt, tools, extra variables
CASES: list[tuple[str, list, bool, list | None, dict]] = [
    ("chatml", ONE, True, None, {}), ("chatml", SYSTEM, True, None, {}), ("chatml", TURNS, True, None, {}), ("chatml", ENDS_WITH_ANSWER, False, None, {}),
    ("llama2", ONE, True, None, {}), ("llama2", SYSTEM, True, None, {}), ("llama2", TURNS, True, None, {}), ("llama2", TWO_USERS, True, None, {}),
    ("llama2", ENDS_WITH_ANSWER, False, None, {}),
    ("llama3", ONE, True, None, DATE), ("llama3", SYSTEM, True, None, DATE), ("llama3", TURNS, False, None, DATE),
    ("llama3", CALLED, True, [WEATHER, ADD], DATE), ("llama3", CALLED_TWICE, True, [WEATHER, ADD], DATE),
    ("mistral", ONE, True, None, {}), ("mistral", SYSTEM, True, None, {}), ("mistral", TURNS, True, None, {}), ("mistral", TWO_USERS, True, None, {}),
    ("mistral", ENDS_WITH_ANSWER, False, None, {}), ("mistral", TURNS, True, [WEATHER, ADD], {}),
    ("qwen3_like", ONE, True, None, {}), ("qwen3_like", ONE, True, None, {"enable_thinking": False}), ("qwen3_like", TURNS, True, None, {}),
    ("qwen3_like", THOUGHT, False, None, {}), ("qwen3_like", REASONED, False, None, {}), ("qwen3_like", CALLED, True, [WEATHER], {}),
    ("qwen3_like", CALLED_TWICE, True, [WEATHER, ADD], {}), ("qwen3_like", SYSTEM, True, [ADD], {"enable_thinking": True}),
    ("gemma_like", ONE, True, None, {}), ("gemma_like", TURNS, True, None, {}), ("gemma_like", PARTS, True, None, {}), ("gemma_like", TWO_USERS, True, None, {}),
    ("macros", ONE, True, None, {}), ("macros", LINES, True, [WEATHER, ADD], {}), ("macros", ENDS_WITH_ANSWER, True, None, {}),
]


def render(name: str, messages: list, generate: bool, tools: list | None, extra: dict) -> dict[str, Any]:
    bos, eos = TOKENS[name]
    base = Tokenizer(models.WordLevel({"<unk>": 0, bos: 1, eos: 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, bos_token=bos, eos_token=eos, chat_template=(HERE / f"{name}.jinja").read_text())
    case: dict[str, Any] = {"template": name, "messages": messages, "add_generation_prompt": generate, "bos_token": bos, "eos_token": eos}
    if tools is not None:
        case["tools"] = tools
    if extra:
        case["extra"] = extra
    try:
        case["expected"] = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=generate, tokenize=False, **extra)
    except TemplateError as error:
        case["error"] = str(error)
    return case


def main() -> None:
    cases = [render(*case) for case in CASES]
    (HERE / "cases.json").write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")
    print(len(cases), "cases,", sum("error" in case for case in cases), "of them errors")


if __name__ == "__main__":
    main()
