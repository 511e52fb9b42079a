"""smolagents' models and agents against `atoll serve`."""

import openai
import smolagents
from smolagents import ChatMessage, CodeAgent, MessageRole, OpenAIModel, ToolCallingAgent

import served_model
from served_model import API_KEY, SCRIPTS, say


class SmolAgents(served_model.ScriptedModelCase):
    def model(self, name="tiny", **more):
        return OpenAIModel(name, api_base=self.url, api_key=API_KEY, max_tokens=200, **more)

    def setUp(self):
        self.asked = asked = []

        @smolagents.tool
        def get_weather(city: str) -> str:
            """The weather of a city.

            Args:
                city: Its name.
            """
            asked.append(city)
            return f"rain in {city}"

        self.tool = get_weather

    def test_chat_and_usage(self):
        answer = self.model()([ChatMessage(role=MessageRole.USER, content=[
            {"type": "text", "text": say("answer")}])])
        self.assertEqual(answer.content, SCRIPTS["answer"])
        self.assertGreater(answer.token_usage.output_tokens, 3)

    def test_stream(self):
        deltas = list(self.model().generate_stream([ChatMessage(
            role=MessageRole.USER, content=[{"type": "text", "text": say("answer")}])]))
        self.assertEqual("".join(delta.content or "" for delta in deltas), SCRIPTS["answer"])

    def test_agent_that_calls(self):
        for streams in (False, True):
            with self.subTest(streams=streams):
                self.asked.clear()
                agent = ToolCallingAgent(tools=[self.tool], model=self.model(tool_choice="auto"),
                                         max_steps=3, stream_outputs=streams, verbosity_level=0)
                self.assertEqual(agent.run(say("weather", "final")), "Rain falls on Rome.")
                self.assertEqual(self.asked, ["Rome"])

    def test_agent_that_forces_calls(self):
        agent = ToolCallingAgent(tools=[self.tool], model=self.model(), max_steps=3,
                                 verbosity_level=0)
        result = agent.run("What is it like?", return_full_result=True)
        for step in result.steps[1:]:
            self.assertIsNone(step.get("error"), step)
            if "tool_calls" in step:
                self.assertTrue(step["tool_calls"])

    def test_agent_that_writes_code(self):
        for more in ({}, {"use_structured_outputs_internally": True}):
            with self.subTest(**more):
                self.asked.clear()
                script = "thought" if more else "code"
                agent = CodeAgent(tools=[self.tool], model=self.model(), max_steps=2,
                                  verbosity_level=0, **more)
                self.assertEqual(agent.run(say(script)), "rain in Rome")
                self.assertEqual(self.asked, ["Rome"])

    def test_error(self):
        with self.assertRaises(openai.NotFoundError):
            self.model(name="other")([ChatMessage(role=MessageRole.USER, content="hi")])


if __name__ == "__main__":
    served_model.main()
