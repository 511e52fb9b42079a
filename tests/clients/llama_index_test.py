"""LlamaIndex's OpenAILike and its agents against `atoll serve`."""

import openai
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

import served_model
from served_model import API_KEY, SCRIPTS, say, wait


class Person(BaseModel):
    """A person."""

    name: str
    age: int


class LlamaIndex(served_model.ScriptedModelCase):
    def llm(self, name="tiny", **more):
        return OpenAILike(**{"model": name, "api_base": self.url, "api_key": API_KEY,
                             "is_chat_model": True, "is_function_calling_model": True,
                             "context_window": 8192, "max_tokens": 200, "max_retries": 0, **more})

    def ask(self, text=say("answer")):
        return [ChatMessage(role="system", content="Be brief."),
                ChatMessage(role="user", content=text)]

    def agent_tool(self):
        self.asked = []

        def get_weather(city: str) -> str:
            """The weather of a city."""
            self.asked.append(city)
            return f"rain in {city}"

        return get_weather

    def test_chat_and_usage(self):
        answer = self.llm().chat(self.ask())
        self.assertEqual(answer.message.content, SCRIPTS["answer"])
        self.assertGreater(answer.raw.usage.completion_tokens, 3)

    def test_stream(self):
        deltas = [piece.delta for piece in self.llm().stream_chat(self.ask())]
        self.assertEqual("".join(deltas), SCRIPTS["answer"])

    def test_asynchronous_stream(self):
        async def run():
            return [piece.delta async for piece in await self.llm().astream_chat(self.ask())]

        self.assertEqual("".join(wait(run())), SCRIPTS["answer"])

    def test_completion(self):
        answer = self.llm(is_chat_model=False, max_tokens=4).complete("And God said,")
        self.assertIn(answer.raw.usage.completion_tokens, range(1, 5))

    def test_agent_with_a_tool(self):
        async def run(streaming):
            agent = FunctionAgent(tools=[self.agent_tool()], llm=self.llm(), streaming=streaming)
            return str(await agent.run(say("weather", "answer")))

        for streaming in (False, True):
            with self.subTest(streaming=streaming):
                self.assertEqual(wait(run(streaming)), SCRIPTS["answer"])
                self.assertEqual(self.asked, ["Rome"])

    def test_forced_call(self):
        answer = self.llm().chat_with_tools([_tool(self.agent_tool())], user_msg="Weather?",
                                            tool_required=True)
        calls = self.llm().get_tool_calls_from_response(answer)
        self.assertEqual([call.tool_name for call in calls], ["get_weather"])

    def test_structured_output(self):
        for more in ({}, {"should_use_structured_outputs": True}):
            with self.subTest(**more):
                llm = self.llm(**more)
                answer = llm.structured_predict(Person, PromptTemplate("{text}"), text=say("person"))
                self.assertEqual(answer, Person(name="Ada Lovelace", age=36))

    def test_error(self):
        with self.assertRaises(openai.NotFoundError):
            self.llm(name="other").chat(self.ask())


def _tool(function):
    from llama_index.core.tools import FunctionTool

    return FunctionTool.from_defaults(function)


if __name__ == "__main__":
    served_model.main()
