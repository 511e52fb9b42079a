"""Semantic Kernel's connector and agent against `atoll serve`."""

import openai
from pydantic import BaseModel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.connectors.ai.open_ai import (
    OpenAIChatCompletion, OpenAIChatPromptExecutionSettings)
from semantic_kernel.contents import ChatHistory
from semantic_kernel.exceptions import ServiceException
from semantic_kernel.functions import kernel_function

import served_model
from served_model import API_KEY, SCRIPTS, say, wait


class Person(BaseModel):
    name: str
    age: int


class Weather:
    def __init__(self):
        self.asked = []

    @kernel_function(description="The weather of a city.")
    def get_weather(self, city: str) -> str:
        self.asked.append(city)
        return f"rain in {city}"


class SemanticKernel(served_model.ScriptedModelCase):
    def service(self, name="tiny"):
        client = openai.AsyncOpenAI(base_url=self.url, api_key=API_KEY, max_retries=0)
        return OpenAIChatCompletion(ai_model_id=name, async_client=client)

    def settings(self, **more):
        return OpenAIChatPromptExecutionSettings(max_tokens=200, **more)

    def ask(self, text, name="tiny", **more):
        history = ChatHistory(system_message="Be brief.")
        history.add_user_message(text)
        return wait(self.service(name).get_chat_message_content(history, self.settings(**more)))

    def test_chat_and_usage(self):
        answer = self.ask(say("answer"))
        self.assertEqual(str(answer), SCRIPTS["answer"])
        self.assertGreater(answer.metadata["usage"].completion_tokens, 3)

    def test_stream(self):
        async def run():
            history = ChatHistory()
            history.add_user_message(say("answer"))
            return "".join([str(piece) async for piece in self.service()
                            .get_streaming_chat_message_content(history, self.settings())])

        self.assertEqual(wait(run()), SCRIPTS["answer"])

    def test_agent_with_a_tool(self):
        weather = Weather()
        agent = ChatCompletionAgent(service=self.service(), name="tester", plugins=[weather],
                                    instructions="Be brief.",
                                    function_choice_behavior=FunctionChoiceBehavior.Auto())
        # It offers the function as Weather-get_weather.
        answer = wait(agent.get_response(messages=say("plugin", "answer")))
        self.assertEqual((str(answer), weather.asked), (SCRIPTS["answer"], ["Rome"]))

    def test_structured_output(self):
        answer = self.ask(say("person"), response_format=Person)
        self.assertEqual(Person.model_validate_json(str(answer)), Person(name="Ada Lovelace", age=36))

    def test_error(self):
        with self.assertRaises(ServiceException) as raised:
            self.ask("hi", name="other")
        self.assertIsInstance(raised.exception.__cause__, openai.NotFoundError)


if __name__ == "__main__":
    served_model.main()
