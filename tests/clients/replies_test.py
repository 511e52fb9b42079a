"""Replies as models write them, through the whole real path and each door, streamed and whole.

The scripted model says each reply of tests/cases/replies.jsonl twice, cut into different tokens, under the template of its
format. Both forms of each door's answer must hold what the case says, and each stream its door's grammar.
"""

import json
import os
import tempfile
import unittest

import served_model
import streams
from served_model import API_KEY, ROOT, scripted_model

BATCH = 30  # scripts of one model: pieces must differ, and replies are alike
FORMATS = {
    "v31": ("<｜User｜>", "<｜Assistant｜>",
            "'<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>'"),
    "v3": ("<｜User｜>", "<｜Assistant｜>",
           "'<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call['function']['name'] + '\\n```json\\n'"),
    "kimi": ("<|im_user|>", "<|im_assistant|>",
             "'<|tool_calls_section_begin|><|tool_call_begin|>' + call['id'] + '<|tool_call_argument_begin|>'"),
}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}


def template(format):
    """One that shows the format's marks, and leaves it to the model to think or not unless `think` is set."""
    user, assistant, call = FORMATS[format]
    return ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '" + assistant + "' }}"
            "{% for call in m['tool_calls'] or [] %}{{ " + call + " + call['function']['arguments'] }}{% endfor %}"
            "{% else %}{{ '" + user + "' }}{% endif %}{{ m['content'] or '' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '" + assistant + "⟦' + script + '⟧' + ('<think>' if think else '') }}{% endif %}")


def cases():
    with open(os.path.join(ROOT, "tests", "cases", "replies.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


class Replies(unittest.TestCase):
    def ask(self, path, case, script, pieces, stream):
        """The answer in one form for all doors: content, reasoning, calls, why it ended."""
        tools = case.get("tools", ["get_weather", "get_time"])
        body = {"model": "tiny", "stream": stream, "temperature": 0,
                "chat_template_kwargs": {"script": script, "think": case.get("reasoning_open", False)}}
        most = pieces if case.get("cut") else pieces + 20
        functions = [{"name": name, "parameters": WEATHER} for name in tools]
        one = case.get("calls_max") == 1
        asked = [{"role": "user", "content": "Weather?"}]
        if path == "/v1/chat/completions":
            body |= {"messages": asked, "max_tokens": most, "stop": case.get("stop"),
                     "parallel_tool_calls": not one,
                     "tools": [{"type": "function", "function": f} for f in functions]}
            status, answer = streams.post(self.url, path, body, API_KEY)
            self.assertEqual(status, 200, answer)
            if stream:
                answer = streams.read_chat(answer)
                return answer["content"], answer["reasoning"], answer["calls"], answer["finish_reason"]
            (choice,) = answer["choices"]
            message = choice["message"]
            calls = [[c["function"]["name"], c["function"]["arguments"]]
                     for c in message.get("tool_calls", [])]
            return (message["content"] or "", message.get("reasoning_content", ""), calls,
                    choice["finish_reason"])
        if path == "/v1/responses":
            body |= {"input": "Weather?", "max_output_tokens": most, "stop": case.get("stop"),
                     "parallel_tool_calls": not one,
                     "tools": [{"type": "function", **f} for f in functions]}
            status, answer = streams.post(self.url, path, body, API_KEY)
            self.assertEqual(status, 200, answer)
            answer = streams.read_response(answer) if stream else answer
            streams.check_response(answer)
            items = answer["output"]
            said = {kind: "".join(item["content"][0]["text"] for item in items if item["type"] == kind)
                    for kind in ("message", "reasoning")}
            calls = [[i["name"], i["arguments"]] for i in items if i["type"] == "function_call"]
            reason = "length" if answer["status"] == "incomplete" else "tool_calls" if calls else "stop"
            return said["message"], said["reasoning"], calls, reason
        body |= {"messages": asked, "max_tokens": most, "stop_sequences": case.get("stop"),
                 "tool_choice": {"type": "auto", "disable_parallel_tool_use": one},
                 "tools": [{"name": f["name"], "input_schema": f["parameters"]} for f in functions]}
        status, answer = streams.post(self.url, path, body, API_KEY)
        self.assertEqual(status, 200, answer)
        answer = streams.read_message(answer) if stream else answer
        streams.check_message(answer)
        blocks = answer["content"]
        calls = [[b["name"], b["input"]] for b in blocks if b["type"] == "tool_use"]
        reason = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length",
                  "tool_use": "tool_calls"}[answer["stop_reason"]]
        return ("".join(b["text"] for b in blocks if b["type"] == "text"),
                "".join(b["thinking"] for b in blocks if b["type"] == "thinking"), calls, reason)

    def check(self, case, script, pieces):
        cut = case.get("cut", False)
        expected = (case["content"], case["reasoning"],
                    [[name, self.arguments(text)] for name, text in case["calls"]],
                    "length" if cut else "tool_calls" if case["calls"] else "stop")
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages"):
            for stream in (False, True):
                with self.subTest(case["name"], script=script, path=path, stream=stream):
                    content, reasoning, calls, reason = self.ask(path, case, script, pieces, stream)
                    calls = [[name, self.arguments(text)] for name, text in calls]
                    self.assertEqual((content, reasoning, calls, reason), expected, case["reply"])

    @staticmethod
    def arguments(text):
        return streams.input_of(text) if isinstance(text, str) else text

    def served(self, format, of_name):
        """Each case with its script's name and number of tokens, while a server has a model that says it."""
        names = list(of_name)
        for at in range(0, len(names), BATCH):
            batch = names[at:at + BATCH]
            with tempfile.TemporaryDirectory() as folder:
                pieces = scripted_model.write_model({name: of_name[name]["reply"] for name in batch},
                                                    template(format), folder)
                server = served_model.ServedModel(os.path.join(folder, "keys"), folder)
                self.url = server.url
                try:
                    for name in batch:
                        yield of_name[name], name, pieces[name]
                finally:
                    self.assertEqual(server.stop(), 0)

    def test_all(self):
        tried = 0
        for format in FORMATS:
            of_format = [case for case in cases() if case["format"] == format]
            twice = {f"{i}{cut}": case for cut in "ab" for i, case in enumerate(of_format)}
            for case, script, pieces in self.served(format, twice):
                self.check(case, script, pieces)
                tried += 1
        self.assertGreaterEqual(tried, 230)

    def test_cut_anywhere(self):
        """max_tokens at each token of a reply with calls: no piece of a mark is shown, and a stream says the same."""
        tried = 0
        for format in FORMATS:
            of_format = [case for case in cases() if case["format"] == format and case["calls"] and not case.get("cut")
                         and not case["name"].startswith(("broken", "not offered"))]  # text until the good one comes
            for case, script, pieces in self.served(format, {str(i): case for i, case in enumerate(of_format)}):
                for most in range(1, pieces + 1):
                    with self.subTest(case["name"], max_tokens=most):
                        whole, streamed = (self.ask("/v1/chat/completions", case | {"cut": True}, script, most, stream)
                                           for stream in (False, True))
                        self.assertEqual(whole, streamed)
                        content, reasoning, calls, _ = whole
                        self.assertTrue(case["content"].strip().startswith(content.rstrip("\n<").strip()), whole)
                        self.assertTrue(case["reasoning"].startswith(reasoning.rstrip("\n<")), whole)
                        for (name, arguments), (whole_name, whole_arguments) in zip(calls, case["calls"]):
                            self.assertEqual(name, whole_name)
                            self.assertTrue(whole_arguments.startswith(arguments), whole)
                        self.assertLessEqual(len(calls), len(case["calls"]))
                        tried += 1
        self.assertGreater(tried, 1000)


if __name__ == "__main__":
    served_model.main()
