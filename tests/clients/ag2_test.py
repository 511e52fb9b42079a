"""ag2's Agent against `atoll serve`: chats, /v1/responses and /v1/messages."""

from ag2 import Agent
from ag2.config import AnthropicConfig, OpenAIConfig, OpenAIResponsesConfig
from ag2.events import ModelMessageChunk
from pydantic import BaseModel

import served_model
from served_model import API_KEY, SCRIPTS, say, wait


class Person(BaseModel):
    name: str
    age: int


class Suite:
    def agent(self, name="tiny", streaming=False, **more):
        return Agent("tester", config=self.config(name, streaming), **more)

    def agent_with_tool(self, **more):
        self.asked = []

        def get_weather(city: str) -> str:
            """The weather of a city."""
            self.asked.append(city)
            return f"rain in {city}"

        return self.agent(tools=[get_weather], **more)

    def test_chat_and_usage(self):
        async def run():
            reply = await self.agent(prompt="Be brief.").ask(say("answer"))
            return reply.body, (await reply.usage()).total

        text, usage = wait(run())
        self.assertEqual(text, SCRIPTS["answer"])
        self.assertGreater(usage.completion_tokens, 3)

    def test_conversation(self):
        async def run():
            first = await self.agent().ask(say("hello", "answer"))
            return (await first.ask("And then?")).body

        self.assertEqual(wait(run()), SCRIPTS["answer"])

    def test_stream(self):
        async def run():
            pieces = []
            async with self.agent_with_tool(streaming=True).run(say("weather", "answer")) as turn:
                turn.stream.where(ModelMessageChunk).subscribe(lambda e: pieces.append(e.content))
                return (await turn.result()).body, "".join(pieces)

        self.assertEqual(wait(run()), (SCRIPTS["answer"], "Let me look. " + SCRIPTS["answer"]))
        self.assertEqual(self.asked, ["Rome"])

    def test_tools(self):
        reply = wait(self.agent_with_tool().ask(say("weather", "two", "answer")))
        self.assertEqual(reply.body, SCRIPTS["answer"])
        self.assertEqual(sorted(self.asked), ["Lima", "Oslo", "Rome"])

    def test_structured_output(self):
        async def run():
            return await (await self.agent(response_schema=Person).ask(say("person"))).content()

        self.assertEqual(wait(run()), Person(name="Ada Lovelace", age=36))

    def test_error(self):
        with self.assertRaisesRegex(Exception, "404"):
            wait(self.agent(name="other").ask("hi"))


class Chats(Suite, served_model.ScriptedModelCase):
    def config(self, name, streaming):
        return OpenAIConfig(model=name, base_url=self.url, api_key=API_KEY, streaming=streaming)


class Responses(Suite, served_model.ScriptedModelCase):
    def config(self, name, streaming):
        return OpenAIResponsesConfig(model=name, base_url=self.url, api_key=API_KEY,
                                     streaming=streaming)


class Messages(Suite, served_model.ScriptedModelCase):
    def config(self, name, streaming):
        return AnthropicConfig(model=name, base_url=self.server.url, api_key=API_KEY,
                               max_tokens=200, streaming=streaming)


if __name__ == "__main__":
    served_model.main()
