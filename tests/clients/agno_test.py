"""Agno's Agent against `atoll serve`: chats and /v1/responses."""

from agno.agent import Agent
from agno.models.openai import OpenAIResponses
from agno.models.openai.like import OpenAILike
from pydantic import BaseModel

import served_model
from served_model import API_KEY, SCRIPTS, say


class Person(BaseModel):
    name: str
    age: int


class Suite:
    def agent(self, name="tiny", **more):
        model = self.kind(id=name, base_url=self.url, api_key=API_KEY, max_retries=0)
        return Agent(model=model, telemetry=False, **more)

    def agent_with_tool(self):
        self.asked = []

        def get_weather(city: str) -> str:
            """The weather of a city."""
            self.asked.append(city)
            return f"rain in {city}"

        return self.agent(tools=[get_weather])

    def test_chat_and_usage(self):
        result = self.agent(instructions="Be brief.").run(say("answer"))
        self.assertEqual(result.content, SCRIPTS["answer"])
        self.assertGreater(result.metrics.output_tokens, 3)

    def test_stream(self):
        pieces = [event.content for event in self.agent().run(say("answer"), stream=True)
                  if event.event == "RunContent" and event.content]
        self.assertEqual("".join(pieces), SCRIPTS["answer"])

    def test_tools(self):
        result = self.agent_with_tool().run(say("weather", "two", "answer"))
        self.assertTrue(result.content.endswith(SCRIPTS["answer"]), result.content)
        self.assertEqual(self.asked, ["Rome", "Oslo", "Lima"])

    def test_tools_streamed(self):
        events = list(self.agent_with_tool().run(say("weather", "answer"), stream=True))
        text = "".join(event.content for event in events
                       if event.event == "RunContent" and event.content)
        self.assertTrue(text.endswith(SCRIPTS["answer"]), text)
        self.assertEqual(self.asked, ["Rome"])

    def test_structured_output(self):
        result = self.agent(output_schema=Person).run(say("person"))
        self.assertEqual(result.content, Person(name="Ada Lovelace", age=36))

    def test_error(self):
        result = self.agent(name="other").run("hi")
        self.assertIn("other", result.content)


class Chats(Suite, served_model.ScriptedModelCase):
    kind = OpenAILike


class Responses(Suite, served_model.ScriptedModelCase):
    kind = OpenAIResponses


if __name__ == "__main__":
    served_model.main()
