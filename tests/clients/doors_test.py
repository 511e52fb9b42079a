"""The official openai and anthropic packages on /v1/responses and /v1/messages."""

import array
import json
import os
import subprocess
import tempfile

import anthropic
import openai

import served_model

TOOL = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"],
        "additionalProperties": False}


class Responses(served_model.ServedModelCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=self.server.url + "/v1", api_key=served_model.API_KEY,
                                    max_retries=0)

    def test_create_and_go_on(self):
        first = self.client.responses.create(model="tiny", input="Call me", max_output_tokens=8)
        self.assertEqual(first.object, "response")
        self.assertTrue(first.output_text)
        second = self.client.responses.create(model="tiny", input="And then?", max_output_tokens=8,
                                              previous_response_id=first.id)
        self.assertGreater(second.usage.input_tokens, first.usage.input_tokens)

    def test_stream(self):
        events = list(self.client.responses.create(model="tiny", input="Call me",
                                                   max_output_tokens=8, stream=True))
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        self.assertIn(events[-1].type, ("response.completed", "response.incomplete"))
        self.assertEqual(events[-1].response.output_text, text)

    def test_forced_call(self):
        answer = self.client.responses.create(
            model="tiny", input="Weather?", max_output_tokens=120, tool_choice="required",
            tools=[{"type": "function", "name": "get_weather", "parameters": TOOL, "strict": True}])
        self.assertEqual(answer.output[-1].type, "function_call")
        self.assertEqual(answer.output[-1].name, "get_weather")

    def test_structured_text(self):
        answer = self.client.responses.create(
            model="tiny", input="Weather?", max_output_tokens=120,
            text={"format": {"type": "json_schema", "name": "w", "schema": TOOL, "strict": True}})
        self.assertIn('"city"', answer.output_text)


class PromptLogprobs(served_model.ServedModelCase):
    """What lm-evaluation-harness's local-completions sums up."""

    def test_are_those_of_atoll_eval(self):
        client = openai.OpenAI(base_url=self.server.url + "/v1", api_key=served_model.API_KEY)
        ids = [0, *range(300, 420, 3)]
        answer = client.completions.create(model="tiny", prompt=ids, echo=True, logprobs=1,
                                           max_tokens=1, temperature=0)
        logprobs = answer.choices[0].logprobs
        self.assertEqual(len(logprobs.tokens), len(ids) + 1)
        self.assertIsNone(logprobs.token_logprobs[0])
        with tempfile.NamedTemporaryFile(suffix=".bin") as file:
            array.array("i", ids).tofile(file)
            file.flush()
            out = subprocess.run(
                [os.environ["ATOLL_BINARY"], "eval", served_model.MODEL_DIR, "--tokens", file.name,
                 "--dtype", "i32", "--row-length", str(len(ids)), "--json"],
                check=True, stdout=subprocess.PIPE, text=True).stdout
        nll = json.loads(out)["nll"] * (len(ids) - 1)
        self.assertAlmostEqual(-sum(logprobs.token_logprobs[1:len(ids)]), nll, delta=1e-6)


class Messages(served_model.ServedModelCase):
    def setUp(self):
        self.client = anthropic.Anthropic(base_url=self.server.url, api_key=served_model.API_KEY,
                                          max_retries=0)
        self.ask = {"model": "tiny", "max_tokens": 8,
                    "messages": [{"role": "user", "content": "Call me"}]}

    def test_create(self):
        message = self.client.messages.create(**self.ask)
        self.assertEqual(message.type, "message")
        self.assertTrue(message.content[0].text)
        self.assertIn(message.stop_reason, ("max_tokens", "end_turn"))

    def test_stream(self):
        with self.client.messages.stream(**self.ask) as stream:
            text = "".join(stream.text_stream)
            self.assertEqual(stream.get_final_message().content[0].text, text)

    def test_forced_call(self):
        message = self.client.messages.create(
            **{**self.ask, "max_tokens": 120}, tool_choice={"type": "any"},
            tools=[{"name": "get_weather", "input_schema": TOOL}])
        self.assertEqual(message.stop_reason, "tool_use")
        self.assertIn("city", message.content[-1].input)

    def test_count_tokens(self):
        count = self.client.messages.count_tokens(model="tiny", messages=self.ask["messages"])
        self.assertGreater(count.input_tokens, 1)

    def test_errors(self):
        with self.assertRaises(anthropic.NotFoundError):
            self.client.messages.create(**{**self.ask, "model": "other"})


if __name__ == "__main__":
    served_model.main()
