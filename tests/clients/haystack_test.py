"""Haystack's generators and Agent against `atoll serve`."""

import openai
from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import create_tool_from_function
from haystack.utils import Secret
from pydantic import BaseModel

import served_model
from served_model import API_KEY, SCRIPTS, say


class Person(BaseModel):
    name: str
    age: int


class Suite:
    def generator(self, name="tiny", **more):
        settings = {"model": name, "api_base_url": self.url, "max_retries": 0,
                    "api_key": Secret.from_token(API_KEY)}
        return self.kind(**{**settings, **more})

    def ask(self, text, **more):
        return self.generator(**more).run([ChatMessage.from_user(text)])["replies"][0]

    def setUp(self):
        self.asked = asked = []

        def get_weather(city: str) -> str:
            """The weather of a city."""
            asked.append(city)
            return f"rain in {city}"

        self.tool = create_tool_from_function(get_weather)

    def test_chat_and_usage(self):
        answer = self.ask(say("answer"))
        self.assertEqual(answer.text, SCRIPTS["answer"])
        self.assertTrue(answer.meta["usage"])

    def test_stream(self):
        pieces = []
        answer = self.ask(say("answer"), streaming_callback=lambda piece: pieces.append(piece.content))
        self.assertEqual(answer.text, SCRIPTS["answer"])
        self.assertEqual("".join(pieces), SCRIPTS["answer"])

    def test_agent_with_a_tool(self):
        for more in ({}, {"streaming_callback": lambda piece: None}):
            with self.subTest(streams=bool(more)):
                self.asked.clear()
                agent = Agent(chat_generator=self.generator(), tools=[self.tool], **more)
                result = agent.run(messages=[ChatMessage.from_user(say("weather", "answer"))])
                self.assertEqual(self.asked, ["Rome"])
                self.assertEqual(result["messages"][-1].text, SCRIPTS["answer"])

    def test_structured_output(self):
        answer = self.ask(say("person"), generation_kwargs=self.structured)
        self.assertEqual(Person.model_validate_json(answer.text), Person(name="Ada Lovelace", age=36))

    def test_error(self):
        with self.assertRaises(openai.NotFoundError):
            self.ask("hi", name="other")


class Chats(Suite, served_model.ScriptedModelCase):
    kind = OpenAIChatGenerator
    structured = {"response_format": Person}


class Responses(Suite, served_model.ScriptedModelCase):
    kind = OpenAIResponsesChatGenerator
    structured = {"text_format": Person}


if __name__ == "__main__":
    served_model.main()
