"""pydantic-ai against `atoll serve`, over all three APIs that it speaks; /v1/responses is what it takes by itself."""

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

import served_model
from served_model import API_KEY, SCRIPTS, say, wait


class Person(BaseModel):
    name: str
    age: int


class Suite:
    """The same of each API."""

    structured = (NativeOutput, ToolOutput)

    def agent(self, name="tiny", **more):
        return Agent(self.model(name), model_settings={"max_tokens": 200}, **more)

    def agent_with_tool(self):
        agent = self.agent()

        @agent.tool_plain
        def get_weather(city: str) -> str:
            """The weather of a city."""
            self.asked.append(city)
            return f"rain in {city}"

        self.asked = []
        return agent

    def test_chat_and_usage(self):
        result = self.agent(instructions="Be brief.").run_sync(say("answer"))
        self.assertEqual(result.output, SCRIPTS["answer"])
        self.assertGreater(result.usage.input_tokens, 5)
        self.assertGreater(result.usage.output_tokens, 3)

    def test_conversation(self):
        agent = self.agent()
        first = agent.run_sync(say("hello", "answer"))
        second = agent.run_sync("And then?", message_history=first.all_messages())
        self.assertEqual(second.output, SCRIPTS["answer"])

    def test_stream(self):
        async def ask():
            async with self.agent().run_stream(say("answer")) as result:
                return [piece async for piece in result.stream_text(delta=True, debounce_by=None)]

        pieces = wait(ask())
        self.assertEqual("".join(pieces), SCRIPTS["answer"])
        self.assertGreater(len(pieces), 2)

    def test_tools(self):
        result = self.agent_with_tool().run_sync(say("weather", "answer"))
        self.assertEqual((self.asked, result.output), (["Rome"], SCRIPTS["answer"]))

    def test_tools_at_once(self):
        result = self.agent_with_tool().run_sync(say("two", "answer"))
        self.assertEqual((sorted(self.asked), result.output), (["Lima", "Oslo"], SCRIPTS["answer"]))

    def test_tools_streamed(self):
        async def ask():
            async with self.agent_with_tool().run_stream(say("weather", "answer")) as result:
                return await result.get_output()

        # Text before a call ends such a run for pydantic-ai; the call is made all the same.
        self.assertIn(wait(ask()), (SCRIPTS["answer"], "Let me look. "))
        self.assertEqual(self.asked, ["Rome"])

    def test_structured_output(self):
        for kind in self.structured:
            with self.subTest(kind.__name__):
                result = self.agent(output_type=kind(Person)).run_sync(say("person"))
                self.assertEqual(result.output, Person(name="Ada Lovelace", age=36))

    def test_error(self):
        with self.assertRaises(ModelHTTPError) as raised:
            self.agent(name="other").run_sync("hi")
        self.assertEqual(raised.exception.status_code, 404)


class Chats(Suite, served_model.ScriptedModelCase):
    def model(self, name):
        return OpenAIChatModel(name, provider=OpenAIProvider(base_url=self.url, api_key=API_KEY))

    def test_reasoning(self):
        result = self.agent().run_sync(say("think"))
        self.assertEqual(result.output, "Greetings, traveller.")
        thinking = [part.content for part in result.all_messages()[-1].parts
                    if part.part_kind == "thinking"]
        self.assertEqual(thinking, ["They want a greeting, so one it is."])


class Responses(Suite, served_model.ScriptedModelCase):
    def model(self, name):
        return OpenAIResponsesModel(name, provider=OpenAIProvider(base_url=self.url, api_key=API_KEY))


class Messages(Suite, served_model.ScriptedModelCase):
    structured = (ToolOutput,)  # it asks Anthropic's own models alone for the other kind

    def model(self, name):
        return AnthropicModel(name, provider=AnthropicProvider(base_url=self.server.url,
                                                               api_key=API_KEY))


if __name__ == "__main__":
    served_model.main()
