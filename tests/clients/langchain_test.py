"""LangChain's ChatOpenAI against `atoll serve`."""

import asyncio

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

import served_model
from served_model import API_KEY, ServedModelCase


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


if __name__ == "__main__":
    served_model.main()
