#!/usr/bin/env python3
"""Writes golden-forms.jsonl: requests of clients, and what transformers renders of their messages.

A client may write a turn that calls tools in four forms: content null or "", arguments a text or an
object. Each template gets the ones that it takes, which `FORMS` says; so "rendered" is what
transformers makes of the same messages in that form. Made with transformers 5.24.0, jinja2 3.1.6.
Run: python make_golden.py > golden-forms.jsonl
"""
import copy
import json
import os
import sys

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

HERE = os.path.dirname(os.path.abspath(__file__))
# template: (content of a silent turn, or None where the client's is taken; object arguments)
KEEP = object()
FORMS = {
    "deepseek-r1.jinja": (None, False),
    "deepseek-r1-0528.jinja": ("", False),
    "deepseek-v3.1.jinja": (KEEP, False),
    "kimi-k2.jinja": ("", KEEP),
    "kimi-k2-thinking.jinja": (KEEP, KEEP),
    "object-arguments.jinja": (KEEP, True),
}
TOKENS = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]


def call(n, city, as_object=False):
    arguments = {"city": city}
    return {"id": f"functions.get_weather:{n}", "type": "function", "function": {
        "name": "get_weather", "arguments": arguments if as_object else json.dumps(arguments)}}


def user(text):
    return {"role": "user", "content": text}


def result(n, text):
    return {"role": "tool", "tool_call_id": f"functions.get_weather:{n}", "content": text}


def loops():
    """Turns of one tool loop, in the forms that clients send."""
    yield "content_empty", {"role": "assistant", "content": "", "tool_calls": [call(0, "Paris")]}
    yield "content_null", {"role": "assistant", "content": None, "tool_calls": [call(0, "Paris")]}
    yield "content_missing", {"role": "assistant", "tool_calls": [call(0, "Paris")]}
    yield "arguments_object", {"role": "assistant", "content": "", "tool_calls": [call(0, "Paris", True)]}
    yield "two_calls", {"role": "assistant", "content": None, "tool_calls": [call(0, "Paris"), call(1, "Köln")]}
    yield "reasoning", {"role": "assistant", "content": "", "reasoning_content": "I need it.",
                        "tool_calls": [call(0, "Paris")]}
    yield "reasoning_by_another_name", {"role": "assistant", "content": "", "reasoning": "I need it.",
                                        "tool_calls": [call(0, "Paris")]}


def conversations():
    for name, turn in loops():
        yield name, [user("W?"), turn, result(0, "17 C")]
        yield name + "_answered", [user("W?"), turn, result(0, "17 C"),
                                   {"role": "assistant", "content": "17."}, user("And now?")]
    yield "text_beside_calls", [user("W?"), {"role": "assistant", "content": "Let me look.",
                                             "tool_calls": [call(0, "Paris")]}, result(0, "17 C")]
    yield "named", [{"role": "system", "content": "Be brief."}, {"role": "user", "name": "Ann", "content": "Hi"}]
    yield "thought", [user("a"), {"role": "assistant", "content": "<think>b</think>c"}, user("d")]
    yield "unknown_fields", [{"role": "user", "content": "Hi", "mood": "good"},
                             {"role": "assistant", "content": "Ho", "refusal": None, "audio": None}, user("x")]


def adapted(messages, content, as_object):
    """What a template of these forms is given: as clients' messages go, without nulls."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for key in [k for k, v in message.items() if v is None and k != "content"]:
            del message[key]
        calls = message.get("tool_calls")
        if not calls:
            continue
        if not message.get("content"):
            message["content"] = message.get("content") if content is KEEP else content
        for one in calls:
            written = one["function"]["arguments"]
            if as_object is True and isinstance(written, str):
                one["function"]["arguments"] = json.loads(written)
            if as_object is False and not isinstance(written, str):
                one["function"]["arguments"] = json.dumps(written, separators=(",", ":"), ensure_ascii=False)
    return messages


def main():
    assert transformers.__version__ == "5.24.0" and jinja2.__version__ == "3.1.6", "see the docstring"
    folder = sys.argv[1] if len(sys.argv) > 1 else HERE
    for template, (content, as_object) in FORMS.items():
        path = os.path.join(folder, template)
        if not os.path.exists(path):
            continue
        with open(path, encoding="utf-8") as file:
            source = file.read()
        for name, messages in conversations():
            if name == "text_beside_calls" and template == "deepseek-r1.jinja":
                continue  # it loses the calls; ours are shown apart, which another test says
            for tools in ([], TOOLS) if "tools" in source else ([],):
                rendered, _ = render_jinja_template(
                    [adapted(messages, content, as_object)], tools=tools or None, chat_template=source,
                    add_generation_prompt=True, **TOKENS)
                request = {"messages": messages}
                if tools:
                    request["tools"] = tools
                print(json.dumps({"template": template, "case": name, "request": request,
                                  "rendered": rendered[0]}, ensure_ascii=False))


if __name__ == "__main__":
    main()
