"""Strands Agents against `atoll serve`."""

from pydantic import BaseModel
from strands import Agent, tool
from strands.models.openai import OpenAIModel

import served_model
from served_model import API_KEY, SCRIPTS, say, wait


class Person(BaseModel):
    """A person."""

    name: str
    age: int


class Strands(served_model.ScriptedModelCase):
    def agent(self, name="tiny", **more):
        model = OpenAIModel(model_id=name, params={"max_tokens": 200},
                            client_args={"base_url": self.url, "api_key": API_KEY, "max_retries": 0})
        return Agent(model=model, callback_handler=None, **more)

    def agent_with_tool(self):
        self.asked = []

        @tool
        def get_weather(city: str) -> str:
            """The weather of a city."""
            self.asked.append(city)
            return f"rain in {city}"

        return self.agent(tools=[get_weather])

    def test_chat_and_usage(self):
        result = self.agent(system_prompt="Be brief.")(say("answer"))
        self.assertEqual(str(result).strip(), SCRIPTS["answer"])
        self.assertGreater(result.metrics.accumulated_usage["outputTokens"], 3)

    def test_conversation(self):
        agent = self.agent()
        agent(say("hello", "answer"))
        self.assertEqual(str(agent("And then?")).strip(), SCRIPTS["answer"])

    def test_stream(self):
        async def run():
            return [event["data"] async for event in self.agent().stream_async(say("answer"))
                    if "data" in event]

        self.assertEqual("".join(wait(run())), SCRIPTS["answer"])

    def test_tools(self):
        result = self.agent_with_tool()(say("weather", "two", "answer"))
        self.assertEqual(str(result).strip(), SCRIPTS["answer"])
        self.assertEqual(sorted(self.asked), ["Lima", "Oslo", "Rome"])

    def test_structured_output(self):
        result = self.agent()("Who are you?", structured_output_model=Person)
        self.assertIsInstance(result.structured_output, Person)

    def test_error(self):
        with self.assertRaisesRegex(Exception, "404"):
            self.agent(name="other")("hi")


if __name__ == "__main__":
    served_model.main()
