"""Mirascope's calls against `atoll serve`, by its openai provider."""

from mirascope import llm
from pydantic import BaseModel

import served_model
from served_model import API_KEY, SCRIPTS, say


class Person(BaseModel):
    name: str
    age: int


class Suite:
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        llm.register_provider(cls.provider, scope="openai/", base_url=cls.url, api_key=API_KEY)
        cls.name = "openai/tiny" + cls.suffix

    def model(self, **more):
        return llm.Model(self.name, max_tokens=200, **more)

    def test_chat_and_usage(self):
        answer = self.model().call(say("answer"))
        self.assertEqual(answer.text(), SCRIPTS["answer"])
        self.assertGreater(answer.usage.output_tokens, 3)

    def test_stream(self):
        pieces = list(self.model().stream(say("answer")).text_stream())
        self.assertEqual("".join(pieces).strip(), SCRIPTS["answer"])

    def test_tools(self):
        asked = []

        @llm.tool
        def get_weather(city: str) -> str:
            """The weather of a city."""
            asked.append(city)
            return f"rain in {city}"

        answer = self.model().call(say("weather", "answer"), tools=[get_weather])
        answer = answer.resume(answer.execute_tools())
        self.assertEqual((asked, answer.text()), (["Rome"], SCRIPTS["answer"]))

    def test_structured_output(self):
        for mode in ("strict", "tool", "json"):
            with self.subTest(mode):
                answer = self.model().call(say("person"), format=llm.format(Person, mode=mode))
                self.assertEqual(answer.parse(), Person(name="Ada Lovelace", age=36))

    def test_conversation(self):
        answer = self.model().call(say("hello", "answer")).resume("And then?")
        self.assertEqual(answer.text(), SCRIPTS["answer"])

    def test_error(self):
        with self.assertRaises(llm.NotFoundError):
            llm.Model(self.name.replace("tiny", "other")).call("hi")


class Chats(Suite, served_model.ScriptedModelCase):
    provider, suffix = "openai:completions", ":completions"


class Responses(Suite, served_model.ScriptedModelCase):
    provider, suffix = "openai:responses", ":responses"


if __name__ == "__main__":
    served_model.main()
