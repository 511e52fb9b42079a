"""llm, the command-line tool, against `atoll serve`: chats, /v1/responses, and what it keeps of them."""

import json
import os

from click.testing import CliRunner
from llm.cli import cli

import served_model
from served_model import API_KEY, say

TOOLS = '''
def get_weather(city: str) -> str:
    "The weather of a city"
    return "rain in " + city
'''


class Llm(served_model.ScriptedModelCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        home = os.path.join(cls.folder.name, "llm")
        os.mkdir(home)
        models = [{"model_id": "atoll", "model_name": "tiny", "api_base": cls.url,
                   "api_key_name": "atoll", "supports_schema": True, "supports_tools": True}]
        models.append({**models[0], "model_id": "atoll-responses", "responses": True})
        models.append({**models[0], "model_id": "other", "model_name": "other"})
        with open(os.path.join(home, "extra-openai-models.yaml"), "w", encoding="utf-8") as file:
            json.dump(models, file)  # JSON is YAML
        with open(os.path.join(home, "keys.json"), "w", encoding="utf-8") as file:
            json.dump({"atoll": API_KEY}, file)
        cls.runner = CliRunner(env={"LLM_USER_PATH": home})

    def llm(self, *arguments, code=0):
        """What the command prints: stdout, or stderr where it fails."""
        result = self.runner.invoke(cli, arguments)
        self.assertEqual(result.exit_code, code, result.output)
        return (result.stderr if code else result.stdout).strip()

    def test_chat_streams_or_not(self):
        for model in ("atoll", "atoll-responses"):
            for more in ([], ["--no-stream"]):
                with self.subTest(model=model, more=more):
                    self.assertEqual(self.llm("-m", model, say("answer"), *more),
                                     served_model.SCRIPTS["answer"])

    def test_conversation_goes_on(self):
        self.llm("-m", "atoll", say("hello", "answer"))
        self.assertEqual(self.llm("--continue", "and then?"), served_model.SCRIPTS["answer"])

    def test_tools(self):
        for model in ("atoll", "atoll-responses"):
            with self.subTest(model):
                out = self.llm("-m", model, "--functions", TOOLS, say("weather", "answer"))
                self.assertIn(served_model.SCRIPTS["answer"], out)
                logged = json.loads(self.llm("logs", "--json", "-n", "2"))
                called = [call for row in logged for call in row["tool_calls"]]
                self.assertEqual([(c["name"], c["arguments"]) for c in called],
                                 [("get_weather", {"city": "Rome"})])
                results = [result for row in logged for result in row["tool_results"]]
                self.assertEqual([result["output"] for result in results], ["rain in Rome"])

    def test_schema(self):
        for model in ("atoll", "atoll-responses"):
            with self.subTest(model):
                out = json.loads(self.llm("-m", model, "--schema", "name, age int", say("person"),
                                          "-o", "max_tokens", "120"))
                self.assertEqual(out, {"name": "Ada Lovelace", "age": 36})

    def test_usage(self):
        self.llm("-m", "atoll", say("hello"))
        row = json.loads(self.llm("logs", "--json", "-n", "1"))[0]
        self.assertGreater(row["input_tokens"], 5)
        self.assertGreater(row["output_tokens"], 3)

    def test_error(self):
        self.assertIn("other", self.llm("-m", "other", "hi", code=1))


if __name__ == "__main__":
    served_model.main()
