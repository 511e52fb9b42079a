"""openai-python against `atoll serve`."""

import asyncio
import json
import unittest

import openai
from pydantic import BaseModel

import served_model
from served_model import API_KEY, ServedModelCase

MESSAGES = [{"role": "user", "content": "And God said,"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "maxLength": 12},
                           "days": {"type": "integer"}},
            "required": ["place", "days"],
            "additionalProperties": False,
        },
    },
}


class OpenAi(ServedModelCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=self.server.url + "/v1", api_key=API_KEY,
                                    max_retries=0, timeout=60)

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["tiny"])
        self.assertEqual(self.client.models.retrieve("tiny").owned_by, "atoll")

    def test_chat(self):
        answer = self.client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=8, temperature=0)
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertTrue(answer.choices[0].message.content)
        self.assertEqual(answer.usage.completion_tokens, 8)
        self.assertGreater(answer.usage.prompt_tokens, 0)
        self.assertTrue(answer.id.startswith("chatcmpl-"))

    def test_equal_seeds_give_equal_texts_and_streams_the_same(self):
        def ask(**more):
            return self.client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=12, temperature=1, **more)

        first, second = ask(seed=7), ask(seed=7)
        self.assertEqual(first.choices[0].message.content, second.choices[0].message.content)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(seed=7, stream=True))
        self.assertEqual(streamed, first.choices[0].message.content)
        self.assertNotEqual(ask(seed=8).choices[0].message.content,
                            first.choices[0].message.content)

    def test_choices(self):
        answer = self.client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=8, n=3, seed=1, temperature=1)
        texts = {choice.message.content for choice in answer.choices}
        self.assertEqual(len(answer.choices), 3)
        self.assertGreater(len(texts), 1)

    def test_stream_with_usage(self):
        chunks = list(self.client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=8, temperature=0, stream=True,
            stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual(chunks[-2].choices[0].finish_reason, "length")
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, 8)

    def test_completion_with_logprobs(self):
        answer = self.client.completions.create(
            model="tiny", prompt="And God said,", max_tokens=4, temperature=0, logprobs=3)
        logprobs = answer.choices[0].logprobs
        self.assertEqual("".join(logprobs.tokens), answer.choices[0].text)
        self.assertEqual(len(logprobs.token_logprobs), 4)
        for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs,
                                       logprobs.top_logprobs):
            self.assertLessEqual(logprob, 0)
            self.assertEqual(top[token], max(top.values()))  # greedy

    def test_chat_logprobs(self):
        answer = self.client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=4, temperature=0, logprobs=True,
            top_logprobs=2)
        content = answer.choices[0].logprobs.content
        self.assertEqual(len(content), 4)
        for token in content:
            self.assertEqual(token.top_logprobs[0].token, token.token)
            self.assertAlmostEqual(token.top_logprobs[0].logprob, token.logprob, places=5)
        self.assertEqual(b"".join(bytes(token.bytes) for token in content).decode(),
                         answer.choices[0].message.content)

    def test_stop(self):
        text = self.client.completions.create(
            model="tiny", prompt="And God said,", max_tokens=12, temperature=0).choices[0].text
        stop = text[len(text) // 2:][:4]
        answer = self.client.completions.create(
            model="tiny", prompt="And God said,", max_tokens=12, temperature=0, stop=stop)
        self.assertEqual(answer.choices[0].text, text[:text.index(stop)])
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_forced_call(self):
        answer = self.client.chat.completions.create(
            model="tiny", messages=MESSAGES, tools=[WEATHER], max_tokens=400, seed=3,
            tool_choice={"type": "function", "function": {"name": "get_weather"}})
        call = answer.choices[0].message.tool_calls[0]
        self.assertEqual(call.function.name, "get_weather")
        arguments = json.loads(call.function.arguments)
        self.assertEqual(set(arguments), {"place", "days"})
        self.assertIsInstance(arguments["days"], int)
        self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
        # And on with it.
        again = self.client.chat.completions.create(
            model="tiny", tools=[WEATHER], max_tokens=4, messages=MESSAGES + [
                answer.choices[0].message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": call.id, "content": "rain"}])
        self.assertEqual(again.usage.completion_tokens, 4)

    def test_forced_call_streamed(self):
        name, arguments = "", ""
        for chunk in self.client.chat.completions.create(
                model="tiny", messages=MESSAGES, tools=[WEATHER], max_tokens=400, seed=4,
                tool_choice="required", parallel_tool_calls=False, stream=True):
            for call in chunk.choices[0].delta.tool_calls or []:
                self.assertEqual(call.index, 0)
                name += call.function.name or ""
                arguments += call.function.arguments or ""
        self.assertEqual(name, "get_weather")
        self.assertEqual(set(json.loads(arguments)), {"place", "days"})

    def test_json_schema(self):
        class Person(BaseModel):
            name: str
            age: int

        answer = self.client.chat.completions.parse(
            model="tiny", messages=MESSAGES, response_format=Person, max_tokens=300, seed=5)
        self.assertIsInstance(answer.choices[0].message.parsed, Person)

    def test_json_object(self):
        answer = self.client.chat.completions.create(
            model="tiny", messages=MESSAGES, response_format={"type": "json_object"},
            max_tokens=200, seed=6)
        self.assertIsInstance(json.loads(answer.choices[0].message.content), dict)

    def test_errors_are_the_clients_own(self):
        with self.assertRaises(openai.NotFoundError) as raised:
            self.client.chat.completions.create(model="gpt-4", messages=MESSAGES)
        self.assertEqual(raised.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as raised:
            self.client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=3)
        self.assertEqual(raised.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as raised:
            self.client.completions.create(model="tiny", prompt="x" * 60000)
        self.assertEqual(raised.exception.code, "context_length_exceeded")
        stranger = openai.OpenAI(base_url=self.server.url + "/v1", api_key="sk-other-key",
                                 max_retries=0)
        with self.assertRaises(openai.AuthenticationError) as raised:
            stranger.models.list()
        self.assertEqual(raised.exception.code, "invalid_api_key")

    def test_async_clients_together(self):
        async def ask(client, seed):
            text = ""
            stream = await client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=12, seed=seed, stream=True)
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
            return text

        async def all_of_them():
            async with openai.AsyncOpenAI(base_url=self.server.url + "/v1", api_key=API_KEY,
                                          max_retries=0, timeout=60) as client:
                return await asyncio.gather(*(ask(client, seed) for seed in range(8)))

        together = asyncio.run(all_of_them())
        for seed in (0, 7):
            alone = self.client.chat.completions.create(
                model="tiny", messages=MESSAGES, max_tokens=12, seed=seed)
            self.assertEqual(together[seed], alone.choices[0].message.content)

    def test_leaving_a_stream_leaves_the_server_well(self):
        stream = self.client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=1000, stream=True,
            extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        self.test_chat()


if __name__ == "__main__":
    served_model.main()
