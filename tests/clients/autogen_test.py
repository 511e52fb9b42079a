"""AutoGen's AssistantAgent and client against `atoll serve`."""

import openai
from autogen_agentchat.agents import AssistantAgent
from autogen_core.models import UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from pydantic import BaseModel

import served_model
from served_model import API_KEY, SCRIPTS, say, wait


class Person(BaseModel):
    name: str
    age: int


class AutoGen(served_model.ScriptedModelCase):
    def client(self, name="tiny", **more):
        return OpenAIChatCompletionClient(
            model=name, base_url=self.url, api_key=API_KEY, max_retries=0, max_tokens=200,
            model_info={"vision": False, "function_calling": True, "json_output": True,
                        "structured_output": True, "family": "unknown"}, **more)

    def ask(self, text, **more):
        return wait(self.client().create([UserMessage(content=text, source="user")], **more))

    def test_chat_and_usage(self):
        answer = self.ask(say("answer"))
        self.assertEqual((answer.content, answer.finish_reason), (SCRIPTS["answer"], "stop"))
        self.assertGreater(answer.usage.prompt_tokens, 5)
        self.assertGreater(answer.usage.completion_tokens, 3)

    def test_stream(self):
        async def ask():
            return [piece async for piece in self.client().create_stream(
                [UserMessage(content=say("answer"), source="user")])]

        *pieces, whole = wait(ask())
        self.assertEqual("".join(pieces), SCRIPTS["answer"])
        self.assertEqual(whole.content, SCRIPTS["answer"])

    def test_agent_with_a_tool(self):
        asked = []

        async def get_weather(city: str) -> str:
            """The weather of a city."""
            asked.append(city)
            return f"rain in {city}"

        for streams in (False, True):
            with self.subTest(streams=streams):
                asked.clear()
                agent = AssistantAgent("tester", self.client(), tools=[get_weather],
                                       reflect_on_tool_use=True, model_client_stream=streams,
                                       system_message="Be brief.")
                result = wait(agent.run(task=say("weather", "answer")))
                self.assertEqual(asked, ["Rome"])
                self.assertEqual(result.messages[-1].content, SCRIPTS["answer"])

    def test_structured_output(self):
        answer = self.ask(say("person"), json_output=Person)
        self.assertEqual(Person.model_validate_json(answer.content), Person(name="Ada Lovelace", age=36))

    def test_error(self):
        with self.assertRaises(openai.NotFoundError):
            wait(self.client(name="other").create([UserMessage(content="hi", source="user")]))


if __name__ == "__main__":
    served_model.main()
