"""Hundreds of requests to /v1/responses and /v1/messages, each whole and as a stream.

Requests are drawn, with a fixed seed, from all ways to say the same things (forms of input, tools and their choice, formats,
limits, settings). Every stream is held to the grammar of `streams.py`, every event and answer to the official package's types,
and what is said to the script; a stream and a whole answer must say the same.
"""

import json
import random
import unittest

import anthropic
import openai
import pydantic
from anthropic.types import Message, RawMessageStreamEvent
from openai.types.responses import Response, ResponseStreamEvent

import served_model
import streams
from served_model import API_KEY, SCRIPTS, say

CASES = 170
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"], "additionalProperties": False}
PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20},
                                           "age": {"type": "integer"}},
          "required": ["name", "age"], "additionalProperties": False}
CALLS = {"weather": [["get_weather", {"city": "Rome"}]],
         "two": [["get_weather", {"city": "Oslo"}], ["get_weather", {"city": "Lima"}]]}
TEXTS = {"weather": "Let me look. ", "two": "", "think": "Greetings, traveller."}
SCHEMAS = {"get_weather": CITY, "get_time": {"type": "object", "properties": {}}}


class Draw:
    """Choices of one case; what was chosen is its name."""

    def __init__(self, seed):
        self.random, self.name = random.Random(seed), []

    def __call__(self, **ways):
        (what, values), = ways.items()
        value = self.random.choice(list(values))
        self.name.append(f"{what}={value}")
        return value


class Expected:
    """What an answer has to say."""

    def __init__(self, script, choice, format, limit, parallel=True):
        self.format = format if choice not in ("required", "named") else None
        self.forced, self.limit, self.parallel = choice in ("required", "named"), limit, parallel
        reads_calls = choice == "auto"
        self.calls = CALLS.get(script, []) if reads_calls else []
        if not parallel:
            self.calls = self.calls[:1]
        self.text = TEXTS.get(script, SCRIPTS[script]) if reads_calls or script == "think" \
            else SCRIPTS[script]
        self.reasoning = "They want a greeting, so one it is." if script == "think" else ""

    def check(self, text, reasoning, calls, cut):
        """`calls`: [[name, arguments]]."""
        streams.expect(cut or self.limit is None or self.limit > 20, "it was not cut")
        if self.forced:
            streams.expect(not text, "a text beside a forced call", text)
            streams.expect(cut or calls, "no call")
            for name, arguments in calls[:-1] if cut else calls:
                streams.expect(set(arguments) == set(SCHEMAS[name].get("required", [])), "arguments", arguments)
            streams.expect(self.parallel or len(calls) <= 1, "more than one call", calls)
        elif self.format in ("json_schema", "json_object"):
            value = json.loads(text) if text or not cut else {}
            streams.expect(isinstance(value, dict), "no object", text)
            streams.expect(cut or self.format == "json_object" or set(value) == {"name", "age"}, "keys", value)
        elif cut:
            # Of a mark that is cut its first character stays: it may be a text's.
            streams.expect((self.text + "<").startswith(text), "not the beginning", text, self.text)
            streams.expect(self.reasoning.startswith(reasoning), "not the beginning", reasoning)
        else:
            streams.expect((text, reasoning, calls) == (self.text, self.reasoning, self.calls),
                           "not what the script says", text, reasoning, calls)


class Wire(served_model.ScriptedModelCase):
    def ask(self, body, stream):
        status, answer = streams.post(self.server.url, self.path, body | {"stream": stream}, API_KEY)
        streams.expect(status == 200, f"status {status}", answer)
        return answer

    def run_cases(self):
        seen = set()
        for seed in range(CASES):
            draw = Draw(seed)
            body, expected = self.draw(draw)
            name = " ".join(draw.name)
            seen.add(json.dumps(body, sort_keys=True))
            with self.subTest(name, seed=seed):
                answers = [self.read(self.ask(body, stream), stream, body) for stream in (False, True)]
                for answer in answers:
                    expected.check(*self.said(answer))
                self.assertEqual(*(self.without_ids(answer) for answer in answers))
        self.assertGreaterEqual(len(seen), 150)

    def run_refusals(self, refusals):
        for name, fields, status, words in refusals:
            with self.subTest(name):
                body = {k: v for k, v in (self.good | fields).items() if v is not None}
                for stream in (False, True):
                    found, answer = streams.post(self.server.url, self.path,
                                                 body | {"stream": stream}, API_KEY)
                    self.assertEqual(found, status, answer)
                    self.assertIn(words, answer["error"]["message"])
                    self.check_error(answer, status)


class Responses(Wire):
    path = "/v1/responses"
    good = {"model": "tiny", "input": "hi", "max_output_tokens": 20}
    events = pydantic.TypeAdapter(ResponseStreamEvent)

    def draw(self, draw):
        script = draw(script=["hello", "answer", "weather", "two", "think", "person"])
        body = {"model": "tiny", "temperature": 0}
        body["input"] = self.input(draw(input=["text", "message", "parts", "turns", "items", "loop",
                                               "reasoned", "developer"]), say(script))
        choice = draw(tools=["none", "none", "auto", "auto", "off", "required", "named"])
        parallel = draw(parallel=[None, True, False])
        if choice != "none":
            body["tools"] = [{"type": "function", "name": name, "parameters": parameters,
                              **draw(tool=[{}, {"strict": True}, {"description": "d", "strict": False}])}
                             for name, parameters in SCHEMAS.items()]
            default = choice == "auto" and draw(choice=["default", "said"]) == "default"
            if not default:
                body["tool_choice"] = {"off": "none", "named": {"type": "function", "name": "get_weather"}
                                       }.get(choice, choice)
        if parallel is not None:
            body["parallel_tool_calls"] = parallel
        format = draw(format=[None, None, "text", "json_object", "json_schema"])
        if format and choice != "auto":
            body["text"] = {"format": {"type": format}}
            if format == "json_schema":
                body["text"]["format"] |= {"name": "person", "schema": PERSON, "strict": True}
        else:
            format = None
        limit = draw(limit=[None, None, 200, 2, 40])
        if format in ("json_object", "json_schema") or choice in ("required", "named"):
            limit = 200  # less is refused, or may not be enough
        if limit:
            body["max_output_tokens"] = limit
        body |= draw(more=[{}, {"instructions": "Be brief."}, {"metadata": {"a": "b"}}, {"store": False},
                           {"seed": 3, "top_p": 0.9}, {"user": "u"}, {"truncation": "disabled"},
                           {"include": ["reasoning.encrypted_content"]}, {"service_tier": "auto"},
                           {"stream_options": {"include_obfuscation": False}},
                           {"prompt_cache_key": "k", "safety_identifier": "s"}])
        cut = limit if limit == 2 else None
        return body, Expected(script, {"off": "none"}.get(choice, choice), format, cut, parallel is not False)

    @staticmethod
    def input(form, text):
        user = {"role": "user", "content": text}
        old = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
               "content": [{"type": "output_text", "text": "Yes?", "annotations": []}]}
        call = {"type": "function_call", "call_id": "call_1", "name": "get_time", "arguments": "{}"}
        result = {"type": "function_call_output", "call_id": "call_1", "output": "noon"}
        thought = {"type": "reasoning", "id": "rs_1", "summary": [],
                   "content": [{"type": "reasoning_text", "text": "Hm."}]}
        return {"text": text,
                "message": [user],
                "parts": [{"type": "message", "role": "user",
                           "content": [{"type": "input_text", "text": "Listen."},
                                       {"type": "input_text", "text": text}]}],
                "turns": [{"role": "user", "content": "Hey"}, {"role": "assistant", "content": "Yes?"}, user],
                "items": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hey"}, old, user],
                "loop": [{"role": "user", "content": "Time?"}, call, result, old, user],
                "reasoned": [{"role": "user", "content": "Time?"}, thought, call, result, old, user],
                "developer": [{"role": "developer", "content": "Be brief."}, user]}[form]

    def read(self, answer, stream, body):
        if stream:
            for _, event in answer:
                self.events.validate_python(event)
            answer = streams.read_response(answer)
        streams.check_response(answer)
        Response.model_validate(answer)
        for key in ("instructions", "metadata", "tool_choice", "user", "max_output_tokens", "store",
                    "parallel_tool_calls", "temperature", "text"):
            if key in body:
                streams.expect(answer[key] == body[key], f"{key} is said back wrong", answer[key])
        streams.expect(len(answer["tools"]) == len(body.get("tools", [])), "tools are said back wrong")
        limit = body.get("max_output_tokens", 10**6)
        streams.expect(answer["usage"]["output_tokens"] <= limit, "too many tokens", answer["usage"])
        return answer

    @staticmethod
    def said(answer):
        items, cut = answer["output"], answer["status"] == "incomplete"
        text, reasoning = ("".join(i["content"][0]["text"] for i in items if i["type"] == kind)
                           for kind in ("message", "reasoning"))
        calls = [[i["name"], streams.input_of(i["arguments"])] for i in items if i["type"] == "function_call"]
        return text, reasoning, calls, cut

    @staticmethod
    def without_ids(answer):
        items = [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in answer["output"]]
        kept = {k: v for k, v in answer.items() if k not in ("id", "created_at", "usage", "output")}
        return kept | {"output": items, "tokens": answer["usage"]["output_tokens"]}

    def test_cases(self):
        self.run_cases()

    def test_the_package_adds_up_the_same(self):
        client = openai.OpenAI(base_url=self.url, api_key=API_KEY, max_retries=0)
        for script in ("answer", "weather", "two", "think"):
            with client.responses.stream(model="tiny", input=say(script), temperature=0, tools=[
                    {"type": "function", "name": n, "parameters": p, "strict": True}
                    for n, p in SCHEMAS.items()]) as stream:
                events = list(stream)
                final = stream.get_final_response()
            self.assertEqual(events[-1].type, "response.completed")
            self.assertEqual(final.output_text, TEXTS.get(script, SCRIPTS[script]))
            calls = [[i.name, json.loads(i.arguments)] for i in final.output if i.type == "function_call"]
            self.assertEqual(calls, CALLS.get(script, []))

    def test_conversations_that_the_server_keeps(self):
        first = self.read(self.ask(self.good | {"input": say("weather", "answer", "hello"), "tools": [
            {"type": "function", "name": "get_weather", "parameters": CITY}]}, True), True, {
                "tools": [1]})
        call = first["output"][-1]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
        for stream in (False, True):
            second = self.ask(self.good | {"input": [result], "previous_response_id": first["id"]}, stream)
            second = self.read(second, stream, {})
            self.assertEqual(self.said(second)[0], SCRIPTS["answer"])
            self.assertEqual(second["previous_response_id"], first["id"])
        third = self.read(self.ask(self.good | {"previous_response_id": second["id"]}, False), False, {})
        self.assertEqual(self.said(third)[0], SCRIPTS["hello"])

    def check_error(self, answer, status):
        self.assertEqual(set(answer["error"]), {"message", "type", "param", "code"})

    def test_refusals(self):
        message = lambda part: [{"role": "user", "content": [part]}]
        tool = {"type": "function", "name": "f", "parameters": CITY}
        self.run_refusals([
            ("no input", {"input": None}, 400, "input"),
            ("a number for input", {"input": 3}, 400, "input"),
            ("empty input", {"input": []}, 400, "input"),
            ("another model", {"model": "other"}, 404, "does not exist"),
            ("an image", {"input": message({"type": "input_image", "image_url": "x"})}, 400, "text only"),
            ("a file", {"input": message({"type": "input_file", "file_id": "x"})}, 400, "text only"),
            ("an unknown item", {"input": [{"type": "computer_call"}]}, 400, "computer_call"),
            ("an unknown role", {"input": [{"role": "tool", "content": "x"}]}, 400, "role"),
            ("web search", {"tools": [{"type": "web_search"}]}, 400, "only functions"),
            ("a tool without a name", {"tools": [{"type": "function"}]}, 400, "name"),
            ("a bad schema", {"tools": [tool | {"parameters": {"type": "nothing"}}],
                              "tool_choice": "required"}, 400, "type"),
            ("an unknown choice", {"tools": [tool], "tool_choice": {"type": "hosted"}}, 400, "function"),
            ("a choice that is not offered", {"tools": [tool], "tool_choice": {
                "type": "function", "name": "g"}}, 400, "g"),
            ("a forced call without tools", {"tool_choice": "required"}, 400, "tools"),
            ("an unknown format", {"text": {"format": {"type": "xml"}}}, 400, "json_schema"),
            ("a format without schema", {"text": {"format": {"type": "json_schema", "name": "a"}}}, 400, "schema"),
            ("verbosity", {"text": {"verbosity": "low"}}, 400, "verbosity"),
            ("background", {"background": True}, 400, "background"),
            ("a stored prompt", {"prompt": {"id": "pmpt_1"}}, 400, "prompt"),
            ("a conversation", {"conversation": "conv_1"}, 400, "conversation"),
            ("truncation", {"truncation": "auto"}, 400, "truncation"),
            ("log probabilities", {"include": ["message.output_text.logprobs"]}, 400, "log probabilities"),
            ("top_logprobs", {"top_logprobs": 3}, 400, "top_logprobs"),
            ("too hot", {"temperature": 3}, 400, "temperature"),
            ("no token", {"max_output_tokens": 0}, 400, "max_output_tokens"),
            ("an unknown predecessor", {"previous_response_id": "resp_none"}, 404, "not kept here"),
            ("too long", {"input": "many words " * 9000}, 400, "context"),
        ])


class Messages(Wire):
    path = "/v1/messages"
    good = {"model": "tiny", "max_tokens": 20, "messages": [{"role": "user", "content": "hi"}]}
    events = pydantic.TypeAdapter(RawMessageStreamEvent)

    def draw(self, draw):
        script = draw(script=["hello", "answer", "weather", "two", "think", "person"])
        body = {"model": "tiny", "temperature": 0}
        body["messages"] = self.input(draw(input=["text", "blocks", "cached", "turns", "loop", "loops",
                                                  "thought", "system"]), say(script))
        choice = draw(tools=["none", "none", "auto", "auto", "off", "required", "named"])
        parallel = True
        if choice != "none":
            body["tools"] = [{"name": name, "input_schema": schema,
                              **draw(tool=[{}, {"type": "custom"}, {"description": "d"},
                                           {"cache_control": {"type": "ephemeral"}}])}
                             for name, schema in SCHEMAS.items()]
            if choice != "auto" or draw(choice=["default", "said"]) == "said":
                body["tool_choice"] = {"type": {"off": "none", "named": "tool", "required": "any"
                                                }.get(choice, choice)}
                if choice == "named":
                    body["tool_choice"]["name"] = "get_weather"
                if choice != "off" and draw(parallel=[True, False]) is False:
                    parallel = False
                    body["tool_choice"]["disable_parallel_tool_use"] = True
        format = draw(format=[None, None, "json_schema"]) if choice in ("none", "off") else None
        if format:
            body["output_config"] = {"format": {"type": "json_schema", "schema": PERSON}}
        limit = draw(limit=[100, 200, 2])
        if format or choice in ("required", "named"):
            limit = 200
        body["max_tokens"] = limit
        self.stop = draw(stop=[None, None, None, "morning", "Rome today"])
        if self.stop and not format:
            body["stop_sequences"] = [self.stop, "never said"]
        else:
            self.stop = None
        body |= draw(more=[{}, {"system": "Be brief."}, {"top_k": 5, "top_p": 0.9},
                           {"system": [{"type": "text", "text": "Be brief.",
                                        "cache_control": {"type": "ephemeral"}}]},
                           {"metadata": {"user_id": "u"}}, {"service_tier": "auto"},
                           {"thinking": {"type": "disabled"}} if script != "think" else {}, {"output_config": {"effort": "low"}}
                           if not format else {}])
        expected = Expected(script, {"off": "none"}.get(choice, choice), format,
                            limit if limit == 2 else None, parallel)
        if self.stop and self.stop in expected.text and not expected.forced and limit > 2:
            expected.text = expected.text[:expected.text.index(self.stop)]
        return body, expected

    @staticmethod
    def input(form, text):
        user = {"role": "user", "content": text}
        call = {"type": "tool_use", "id": "toolu_1", "name": "get_time", "input": {}}
        result = {"type": "tool_result", "tool_use_id": "toolu_1"}
        hey = {"role": "user", "content": "Hey"}
        return {"text": [user],
                "blocks": [{"role": "user", "content": [{"type": "text", "text": "Listen."},
                                                        {"type": "text", "text": text}]}],
                "cached": [{"role": "user", "content": [{"type": "text", "text": text, "cache_control": {
                    "type": "ephemeral"}}]}],
                "turns": [hey, {"role": "assistant", "content": "Yes?"}, user],
                "loop": [hey, {"role": "assistant", "content": [{"type": "text", "text": "So."}, call]},
                         {"role": "user", "content": [result | {"content": "noon"},
                                                      {"type": "text", "text": text}]}],
                "loops": [hey, {"role": "assistant", "content": [call, call | {"id": "toolu_2"}]},
                          {"role": "user", "content": [
                              result | {"content": [{"type": "text", "text": "noon"}]},
                              result | {"tool_use_id": "toolu_2", "is_error": True, "content": "no"},
                              {"type": "text", "text": text}]}],
                "thought": [hey, {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""}, call]},
                    {"role": "user", "content": [result]}, {"role": "assistant", "content": "Noon."}, user],
                "system": [{"role": "system", "content": "Be kind."}, user]}[form]

    def read(self, answer, stream, body):
        if stream:
            for _, event in answer:
                self.events.validate_python(event)
            answer = streams.read_message(answer)
        streams.check_message(answer)
        Message.model_validate(answer)
        streams.expect(answer["usage"]["output_tokens"] <= body["max_tokens"], "too many tokens", answer)
        return answer

    @staticmethod
    def said(answer):
        blocks, cut = answer["content"], answer["stop_reason"] == "max_tokens"
        text, reasoning = ("".join(b[kind] for b in blocks if b["type"] == kind)
                           for kind in ("text", "thinking"))
        return text, reasoning, [[b["name"], b["input"]] for b in blocks if b["type"] == "tool_use"], cut

    @staticmethod
    def without_ids(answer):
        blocks = [{k: v for k, v in block.items() if k != "id"} for block in answer["content"]]
        usage = answer["usage"]
        return answer | {"id": "", "content": blocks, "usage": (
            usage["output_tokens"], usage["input_tokens"] + usage["cache_read_input_tokens"])}

    def test_cases(self):
        self.run_cases()

    def test_the_package_adds_up_the_same(self):
        client = anthropic.Anthropic(base_url=self.server.url, api_key=API_KEY, max_retries=0)
        for script in ("answer", "weather", "two", "think"):
            with client.messages.stream(model="tiny", max_tokens=99, messages=[
                    {"role": "user", "content": say(script)}], tools=[
                    {"name": n, "input_schema": s} for n, s in SCHEMAS.items()]) as stream:
                final = stream.get_final_message()
            text, _, calls, _ = self.said(final.model_dump())
            self.assertEqual((text, calls), (TEXTS.get(script, SCRIPTS[script]), CALLS.get(script, [])))

    def test_tokens_are_counted_as_they_are_used(self):
        for seed in range(40):
            body, _ = self.draw(Draw(seed))
            asked = {k: v for k, v in body.items() if k in ("model", "messages", "system", "tools")}
            if body.get("tool_choice", {}).get("type", "auto") != "auto":
                continue
            status, counted = streams.post(self.server.url, self.path + "/count_tokens", asked, API_KEY)
            self.assertEqual(status, 200, counted)
            usage = self.ask(asked | {"max_tokens": 1}, False)["usage"]
            self.assertEqual(counted, {"input_tokens": usage["input_tokens"]
                                       + usage["cache_read_input_tokens"]})

    def check_error(self, answer, status):
        self.assertEqual(answer["type"], "error")
        self.assertEqual(answer["error"]["type"],
                         {400: "invalid_request_error", 404: "not_found_error"}[status])

    def test_refusals(self):
        said = lambda *blocks, role="user": {"messages": [{"role": role, "content": list(blocks)}]}
        tool = {"name": "f", "input_schema": CITY}
        self.run_refusals([
            ("no messages", {"messages": None}, 400, "messages"),
            ("empty messages", {"messages": []}, 400, "messages"),
            ("no max_tokens", {"max_tokens": None}, 400, "max_tokens"),
            ("max_tokens 0", {"max_tokens": 0}, 400, "max_tokens"),
            ("another model", {"model": "other"}, 404, "does not exist"),
            ("an image", said({"type": "image", "source": {}}), 400, "text only"),
            ("a document", said({"type": "document", "source": {}}), 400, "text only"),
            ("an image as result", said({"type": "tool_result", "tool_use_id": "a", "content": [
                {"type": "image"}]}), 400, "text only"),
            ("an unknown role", {"messages": [{"role": "tool", "content": "x"}]}, 400, "role"),
            ("a call by the user", said({"type": "tool_use", "id": "a", "name": "f", "input": {}}), 400, "tool_use"),
            ("Anthropic's own tool", {"tools": [{"type": "web_search_20250305", "name": "w"}]}, 400, "tools of the client"),
            ("a tool without a name", {"tools": [{"input_schema": CITY}]}, 400, "name"),
            ("an unknown choice", {"tools": [tool], "tool_choice": {"type": "some"}}, 400, "any"),
            ("a choice that is not offered", {"tools": [tool], "tool_choice": {"type": "tool", "name": "g"}}, 400, "g"),
            ("a forced call without tools", {"tool_choice": {"type": "any"}}, 400, "tools"),
            ("a bad schema", {"output_config": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}}, 400, "type"),
            ("MCP servers", {"mcp_servers": [{"type": "url", "url": "x", "name": "m"}]}, 400, "mcp_servers"),
            ("a container", {"container": "c"}, 400, "container"),
            ("edits of the context", {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, 400, "edits"),
            ("too hot", {"temperature": 3}, 400, "temperature"),
            ("too many stop sequences", {"stop_sequences": ["x"] * 17}, 400, "stop"),
            ("choices", {"n": 2}, 400, "n"),
            ("log probabilities", {"logprobs": True}, 400, "logprobs"),
            ("too long", {"messages": [{"role": "user", "content": "many words " * 9000}]}, 400, "context"),
        ])


del Wire  # no test by itself

if __name__ == "__main__":
    served_model.main()
