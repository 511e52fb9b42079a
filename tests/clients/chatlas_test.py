"""chatlas against `atoll serve`: over /v1/responses, as it does by itself, chats and /v1/messages."""

import chatlas
from pydantic import BaseModel

import served_model
from served_model import API_KEY, SCRIPTS, say


class Person(BaseModel):
    name: str
    age: int


class Suite:
    def chat_with_tool(self):
        self.asked = []

        def get_weather(city: str) -> str:
            """The weather of a city."""
            self.asked.append(city)
            return f"rain in {city}"

        chat = self.chat()
        chat.register_tool(get_weather)
        return chat

    def test_chat(self):
        chat = self.chat(system_prompt="Be brief.")
        self.assertEqual(str(chat.chat(say("hello", "answer"), echo="none")), SCRIPTS["hello"])
        self.assertEqual(str(chat.chat("And then?", echo="none")), SCRIPTS["answer"])

    def test_whole_answers(self):
        answer = self.chat().chat(say("answer"), echo="none", stream=False)
        self.assertEqual(str(answer), SCRIPTS["answer"])

    def test_stream(self):
        pieces = list(self.chat().stream(say("answer")))
        self.assertEqual("".join(map(str, pieces)), SCRIPTS["answer"])
        self.assertGreater(len(pieces), 2)

    def test_tools(self):
        chat = self.chat_with_tool()
        chat.chat(say("weather", "two", "answer"), echo="none")
        self.assertEqual(self.asked, ["Rome", "Oslo", "Lima"])
        self.assertEqual(chat.get_last_turn().text, SCRIPTS["answer"])

    def test_structured_output(self):
        answer = self.chat().chat_structured(say("person"), data_model=Person)
        self.assertEqual(answer, Person(name="Ada Lovelace", age=36))

    def test_usage(self):
        chat = self.chat()
        chat.chat(say("answer"), echo="none")
        self.assertGreater(chat.get_last_turn().tokens[1], 3)

    def test_error(self):
        with self.assertRaisesRegex(Exception, "404"):
            self.chat(name="other").chat("hi", echo="none")


class Responses(Suite, served_model.ScriptedModelCase):
    def chat(self, name="tiny", **more):
        return chatlas.ChatOpenAI(model=name, base_url=self.url, api_key=API_KEY, **more)


class Chats(Suite, served_model.ScriptedModelCase):
    def chat(self, name="tiny", **more):
        return chatlas.ChatOpenAICompletions(model=name, base_url=self.url, api_key=API_KEY, **more)


class Messages(Suite, served_model.ScriptedModelCase):
    def chat(self, name="tiny", **more):
        return chatlas.ChatAnthropic(model=name, api_key=API_KEY, max_tokens=200,
                                     kwargs={"base_url": self.server.url}, **more)


if __name__ == "__main__":
    served_model.main()
