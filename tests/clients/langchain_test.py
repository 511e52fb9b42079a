"""LangChain's ChatOpenAI and ChatAnthropic against `atoll serve`."""

import asyncio

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

import served_model
from served_model import API_KEY, SCRIPTS, ScriptedModelCase, ServedModelCase, say


@tool
def get_weather(place: str, days: int) -> str:
    """The weather of a place."""
    return f"rain in {place} for {days} days"


class LangChain(ServedModelCase):
    def chat(self, **more):
        settings = {"max_tokens": 8, "seed": 1, "max_retries": 0, "timeout": 60, **more}
        return ChatOpenAI(model="tiny", base_url=self.server.url + "/v1", api_key=API_KEY, **settings)

    def test_invoke(self):
        answer = self.chat().invoke([SystemMessage("Be brief."), HumanMessage("And God said,")])
        self.assertIsInstance(answer, AIMessage)
        self.assertTrue(answer.content)
        self.assertEqual(answer.usage_metadata["output_tokens"], 8)
        self.assertEqual(answer.response_metadata["finish_reason"], "length")

    def test_stream_is_what_invoke_says(self):
        whole = self.chat().invoke("And God said,").content
        self.assertEqual("".join(piece.content for piece in self.chat().stream("And God said,")),
                         whole)

    def test_async_batch(self):
        answers = asyncio.run(self.chat().abatch(["And God", "In the", "He said"]))
        self.assertEqual(len(answers), 3)

    def test_tools(self):
        asked = self.chat(max_tokens=400).bind_tools([get_weather], tool_choice="get_weather")
        answer = asked.invoke("What is it like outside?")
        call = answer.tool_calls[0]
        self.assertEqual(call["name"], "get_weather")
        self.assertEqual(set(call["args"]), {"place", "days"})
        again = self.chat().invoke([HumanMessage("What is it like outside?"), answer,
                                    ToolMessage(get_weather.invoke(call["args"]),
                                                tool_call_id=call["id"])])
        self.assertTrue(again.content)

    def test_structured_output(self):
        class Person(BaseModel):
            name: str
            age: int

        for method in ("json_schema", "function_calling"):
            with self.subTest(method):
                asked = self.chat(max_tokens=400).with_structured_output(Person, method=method)
                self.assertIsInstance(asked.invoke("Who are you?"), Person)

    def test_logprobs(self):
        answer = self.chat(logprobs=True, top_logprobs=2).invoke("And God said,")
        self.assertEqual(len(answer.response_metadata["logprobs"]["content"]), 8)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def weather(city: str) -> str:
    """The weather of a city."""
    return f"rain in {city}"


weather.name = "get_weather"


class Loops:
    """What the scripted model says, by each API."""

    def test_chat_and_usage(self):
        answer = self.chat().invoke([SystemMessage("Be brief."), HumanMessage(say("answer"))])
        self.assertEqual(answer.text, SCRIPTS["answer"])
        self.assertGreater(answer.usage_metadata["output_tokens"], 3)

    def test_stream(self):
        whole = None
        for piece in self.chat().stream(say("answer")):
            whole = piece if whole is None else whole + piece
        self.assertEqual(whole.text, SCRIPTS["answer"])
        self.assertGreater(whole.usage_metadata["output_tokens"], 3)

    def test_tools(self):
        for streams in (False, True):
            with self.subTest(streams=streams):
                asked = self.chat(streaming=streams).bind_tools([weather])
                messages = [HumanMessage(say("weather", "two", "answer"))]
                cities = []
                while not messages[-1].type == "ai" or messages[-1].tool_calls:
                    if messages[-1].type == "ai":
                        for call in messages[-1].tool_calls:
                            cities.append(call["args"]["city"])
                            messages.append(ToolMessage(weather.invoke(call["args"]),
                                                        tool_call_id=call["id"]))
                    messages.append(asked.invoke(messages))
                self.assertEqual(cities, ["Rome", "Oslo", "Lima"])
                self.assertEqual(messages[-1].text, SCRIPTS["answer"])

    def test_structured_output(self):
        for method in self.methods:
            with self.subTest(method):
                asked = self.chat().with_structured_output(Person, method=method)
                self.assertEqual(asked.invoke(say("person")), Person(name="Ada Lovelace", age=36))

    def test_error(self):
        with self.assertRaisesRegex(Exception, "404|does not exist"):
            self.chat(name="other").invoke("hi")


class Chats(Loops, ScriptedModelCase):
    methods = ("json_schema", "function_calling", "json_mode")

    def chat(self, name="tiny", **more):
        return ChatOpenAI(model=name, base_url=self.url, api_key=API_KEY, max_retries=0,
                          stream_usage=True, **more)


class Responses(Loops, ScriptedModelCase):
    methods = ("json_schema", "function_calling")

    def chat(self, name="tiny", **more):
        return ChatOpenAI(model=name, base_url=self.url, api_key=API_KEY, max_retries=0,
                          use_responses_api=True, **more)


class Messages(Loops, ScriptedModelCase):
    methods = ("json_schema", "function_calling")

    def chat(self, name="tiny", **more):
        return ChatAnthropic(model=name, base_url=self.server.url, api_key=API_KEY, max_retries=0,
                             max_tokens=200, **more)


if __name__ == "__main__":
    served_model.main()
