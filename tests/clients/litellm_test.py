"""LiteLLM against `atoll serve`: as OpenAI's, as vLLM's and as Anthropic's API."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices
import litellm
from pydantic import BaseModel

import served_model
from served_model import API_KEY, SCRIPTS, say, wait

litellm.suppress_debug_info = True
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather",
                                         "parameters": PARAMETERS}}


class Person(BaseModel):
    name: str
    age: int


class Suite:
    def ask(self, text=say("answer"), name="tiny", **more):
        messages = text if isinstance(text, list) else [{"role": "user", "content": text}]
        return litellm.completion(model=self.prefix + name, messages=messages, api_base=self.base(),
                                  api_key=API_KEY, max_tokens=200, num_retries=0, **more)

    def test_chat_and_usage(self):
        answer = self.ask()
        self.assertEqual(answer.choices[0].message.content, SCRIPTS["answer"])
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        self.assertGreater(answer.usage.completion_tokens, 3)

    def test_reasoning(self):
        message = self.ask(say("think")).choices[0].message
        self.assertEqual(message.content, "Greetings, traveller.")
        self.assertEqual(message.reasoning_content, "They want a greeting, so one it is.")

    def test_stream(self):
        chunks = list(self.ask(stream=True, stream_options={"include_usage": True}))
        whole = litellm.stream_chunk_builder(chunks)
        self.assertEqual(whole.choices[0].message.content, SCRIPTS["answer"])
        self.assertGreater(whole.usage.completion_tokens, 3)

    def test_asynchronous_stream(self):
        async def run():
            stream = await litellm.acompletion(
                model=self.prefix + "tiny", messages=[{"role": "user", "content": say("answer")}],
                api_base=self.base(), api_key=API_KEY, max_tokens=200, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        self.assertEqual(wait(run()), SCRIPTS["answer"])

    def test_tools(self):
        for stream in (False, True):
            with self.subTest(stream=stream):
                asked = [{"role": "user", "content": say("weather", "answer")}]
                answer = self.ask(asked, tools=[TOOL], stream=stream)
                if stream:
                    answer = litellm.stream_chunk_builder(list(answer))
                message = answer.choices[0].message
                self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
                self.assertEqual(message.tool_calls[0].function.arguments, '{"city": "Rome"}')
                answer = self.ask([*asked, message.model_dump(), {
                    "role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}],
                    tools=[TOOL])
                self.assertEqual(answer.choices[0].message.content, SCRIPTS["answer"])

    def test_forced_call(self):
        answer = self.ask("Weather?", tools=[TOOL], tool_choice="required")
        self.assertEqual(answer.choices[0].message.tool_calls[0].function.name, "get_weather")

    def test_structured_output(self):
        text = self.ask(say("person"), response_format=Person).choices[0].message.content
        self.assertEqual(Person.model_validate_json(text), Person(name="Ada Lovelace", age=36))

    def test_error(self):
        with self.assertRaises(litellm.NotFoundError):
            self.ask("hi", name="other")


class OpenAi(Suite, served_model.ScriptedModelCase):
    prefix = "openai/"

    def base(self):
        return self.url

    def test_text_completion(self):
        answer = litellm.text_completion(model="text-completion-openai/tiny", prompt="And God said,",
                                         api_base=self.url, api_key=API_KEY, max_tokens=4)
        self.assertIn(answer.usage.completion_tokens, range(1, 5))

    def test_responses(self):
        answer = litellm.responses(model="openai/tiny", input=say("answer"), api_base=self.url,
                                   api_key=API_KEY)
        self.assertEqual(answer.output[-1].content[0].text, SCRIPTS["answer"])


class Vllm(Suite, served_model.ScriptedModelCase):
    prefix = "hosted_vllm/"

    def base(self):
        return self.url


class Anthropic(Suite, served_model.ScriptedModelCase):
    prefix = "anthropic/"

    def base(self):
        return self.server.url


if __name__ == "__main__":
    served_model.main()
