"""OpenAI's Agents SDK against `atoll serve`: over /v1/responses, as it does by itself, and over chats."""

import agents
import openai
from agents import Agent, ModelSettings, Runner
from pydantic import BaseModel

import served_model
from served_model import API_KEY, SCRIPTS, say, wait


class Person(BaseModel):
    name: str
    age: int


class Suite:
    def setUp(self):
        agents.set_tracing_disabled(True)
        self.asked = []

        @agents.function_tool
        def get_weather(city: str) -> str:
            """The weather of a city."""
            self.asked.append(city)
            return f"rain in {city}"

        self.tool = get_weather

    def agent(self, name="tiny", **more):
        client = openai.AsyncOpenAI(base_url=self.url, api_key=API_KEY, max_retries=0)
        return Agent(name="Tester", model=self.model(name, client),
                     model_settings=ModelSettings(max_tokens=200), **more)

    def run_agent(self, agent, text, **more):
        return wait(Runner.run(agent, text, max_turns=4, **more))

    def test_chat_and_usage(self):
        result = self.run_agent(self.agent(instructions="Be brief."), say("answer"))
        self.assertEqual(result.final_output, SCRIPTS["answer"])
        self.assertGreater(result.context_wrapper.usage.output_tokens, 3)
        self.assertGreater(result.context_wrapper.usage.input_tokens, 5)

    def test_stream(self):
        async def ask():
            result = Runner.run_streamed(self.agent(tools=[self.tool]), say("weather", "answer"))
            text = ""
            async for event in result.stream_events():
                if event.type == "raw_response_event" and \
                        event.data.type == "response.output_text.delta":
                    text += event.data.delta
            return text, result.final_output

        self.assertEqual(wait(ask()), ("Let me look. " + SCRIPTS["answer"], SCRIPTS["answer"]))
        self.assertEqual(self.asked, ["Rome"])

    def test_tools(self):
        result = self.run_agent(self.agent(tools=[self.tool]), say("weather", "two", "answer"))
        self.assertEqual(result.final_output, SCRIPTS["answer"])
        self.assertEqual(self.asked, ["Rome", "Oslo", "Lima"])

    def test_conversation(self):
        first = self.run_agent(self.agent(), say("hello", "answer"))
        second = self.run_agent(self.agent(), [*first.to_input_list(),
                                               {"role": "user", "content": "And then?"}])
        self.assertEqual(second.final_output, SCRIPTS["answer"])

    def test_structured_output(self):
        result = self.run_agent(self.agent(output_type=Person), say("person"))
        self.assertEqual(result.final_output, Person(name="Ada Lovelace", age=36))

    def test_handoff(self):
        other = self.agent()
        other.name = "Other"
        agent = self.agent(handoffs=[other])
        # The scripted model knows no tool of that name: nothing but what is offered is called.
        self.assertEqual(self.run_agent(agent, say("answer")).final_output, SCRIPTS["answer"])

    def test_error(self):
        with self.assertRaises(openai.NotFoundError):
            self.run_agent(self.agent(name="other"), "hi")


class Responses(Suite, served_model.ScriptedModelCase):
    def model(self, name, client):
        return agents.OpenAIResponsesModel(name, client)

    def test_the_server_keeps_the_conversation(self):
        first = self.run_agent(self.agent(), say("hello", "answer"))
        second = self.run_agent(self.agent(), "And then?", previous_response_id=first.last_response_id)
        self.assertEqual(second.final_output, SCRIPTS["answer"])

    def test_what_it_does_by_itself(self):
        agents.set_default_openai_client(openai.AsyncOpenAI(base_url=self.url, api_key=API_KEY))
        result = self.run_agent(Agent(name="Tester", model="tiny", tools=[self.tool]),
                                say("weather", "answer"))
        self.assertEqual((self.asked, result.final_output), (["Rome"], SCRIPTS["answer"]))


class Chats(Suite, served_model.ScriptedModelCase):
    def model(self, name, client):
        return agents.OpenAIChatCompletionsModel(name, client)


if __name__ == "__main__":
    served_model.main()
