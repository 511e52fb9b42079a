"""A directory of Kimi-K2 as it is published (config with `kimi_k2` and YaRN of 1 and 1, tiktoken.model, added tokens and
chat_template.jinja, code of its own that nobody runs) with tiny weights: inspected, run and served.
"""

import json
import os
import shutil
import subprocess
import tempfile
import unittest

import served_model
import streams
from served_model import API_KEY, ROOT

TESTS = os.path.join(ROOT, "tests")
TOOL = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"],
        "additionalProperties": False}
# What the published config has that V3's hasn't, but for sizes.
CONFIG = {"model_type": "kimi_k2", "n_group": 1, "topk_group": 1, "num_nextn_predict_layers": 0,
          "rope_theta": 50000.0, "routed_scaling_factor": 2.827, "max_position_embeddings": 4096,
          "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config",
                       "AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
          "rope_scaling": {"type": "yarn", "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0,
                           "mscale_all_dim": 1.0, "original_max_position_embeddings": 128}}


def write_model(folder):
    """Weights of tiny-fp8; returns {name of an added token: id}."""
    tiny, golden = os.path.join(TESTS, "models", "tiny-fp8"), os.path.join(TESTS, "golden")
    for name in os.listdir(tiny):
        if name.endswith((".safetensors", ".index.json")):
            shutil.copy(os.path.join(tiny, name), folder)
    shutil.copy(os.path.join(golden, "tiktoken", "tiktoken.model"), folder)
    shutil.copy(os.path.join(golden, "chat", "kimi-k2.jinja"), os.path.join(folder, "chat_template.jinja"))
    tokenizer = read(golden, "tiktoken", "tokenizer_config.json")
    tokens = {token["content"]: int(id) for id, token in tokenizer["added_tokens_decoder"].items()}
    config = read(tiny, "config.json") | CONFIG | {
        "bos_token_id": tokens["[BOS]"], "eos_token_id": tokens["[EOS]"]}
    for name, value in (("config.json", config), ("tokenizer_config.json", tokenizer),
                        ("generation_config.json", {"max_length": 4096, "eos_token_id": tokens["<|im_end|>"]})):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            json.dump(value, file)
    for name in ("tokenization_kimi.py", "modeling_deepseek.py"):
        with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
            file.write("raise SystemExit('run')\n")
    return tokens


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return json.load(file)


class Kimi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.model = os.path.join(cls.folder.name, "Kimi-K2-Instruct")
        os.mkdir(cls.model)
        cls.tokens = write_model(cls.model)
        cls.server = served_model.ServedModel(os.path.join(cls.folder.name, "keys"), cls.model)

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        cls.folder.cleanup()
        assert code == 0, code

    def ask(self, path, body):
        status, answer = streams.post(self.server.url, path, body, API_KEY)
        self.assertEqual(status, 200, answer)
        return answer

    def atoll(self, *arguments):
        return subprocess.run([os.environ["ATOLL_BINARY"], *arguments], capture_output=True, text=True,
                              timeout=120, check=True).stdout

    def test_inspect_and_run(self):
        self.assertIn("kimi_k2", self.atoll("inspect", self.model))
        ran = json.loads(self.atoll("run", self.model, "--prompt", "Call me", "--max-tokens", "8",
                                    "--temperature", "0", "--json"))
        served = self.ask("/v1/completions", {"prompt": "Call me", "max_tokens": 8, "temperature": 0})
        self.assertEqual(ran["text"], served["choices"][0]["text"])

    def prompt(self, **body):
        tokens = self.ask("/tokenize", body)["tokens"]
        return tokens, self.ask("/detokenize", {"tokens": tokens})["prompt"]

    def test_template_and_its_tokens(self):
        tokens, text = self.prompt(messages=[{"role": "user", "content": "Hello 你好"}])
        self.assertEqual(text, "<|im_system|>system<|im_middle|>You are Kimi.<|im_end|><|im_user|>user<|im_middle|>"
                               "Hello 你好<|im_end|><|im_assistant|>assistant<|im_middle|>")
        self.assertEqual(tokens.count(self.tokens["<|im_middle|>"]), 3)
        self.assertEqual(tokens[-1], self.tokens["<|im_middle|>"])
        self.assertEqual(tokens[0], self.tokens["<|im_system|>"])

    def test_ends_at_the_end_of_a_turn(self):
        asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8,
                 "logit_bias": {str(self.tokens["<|im_end|>"]): 100}}
        choice = self.ask("/v1/chat/completions", asked)["choices"][0]
        self.assertEqual((choice["finish_reason"], choice["message"]["content"]), ("stop", ""))

    def test_calls_with_its_marks_and_ids(self):
        tools = [{"type": "function", "function": {"name": "get_weather", "parameters": TOOL}}]
        asked = {"messages": [{"role": "user", "content": "Rome?"}], "tools": tools, "max_tokens": 60, "seed": 1,
                 "tool_choice": "required", "parallel_tool_calls": False}
        message = self.ask("/v1/chat/completions", asked)["choices"][0]["message"]
        (call,) = message["tool_calls"]
        self.assertEqual(call["id"], "functions.get_weather:0")
        self.assertEqual(list(json.loads(call["function"]["arguments"])), ["city"])
        streamed = streams.read_chat(self.ask("/v1/chat/completions", asked | {"stream": True}))
        self.assertEqual(streamed["calls"], [["get_weather", call["function"]["arguments"]]])
        # What the model said comes back to it with the tokens that it said.
        turns = [*asked["messages"], message, {"role": "tool", "tool_call_id": call["id"], "content": "rain"}]
        tokens, text = self.prompt(messages=turns, tools=tools)
        self.assertIn("<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
                      + call["function"]["arguments"] + "<|tool_call_end|><|tool_calls_section_end|>", text)
        self.assertIn("## Return of functions.get_weather:0\nrain", text)
        self.assertEqual(tokens.count(self.tokens["<|tool_call_begin|>"]), 1)
        again = self.ask("/v1/chat/completions", asked | {"messages": turns})["choices"][0]["message"]
        self.assertEqual(again["tool_calls"][0]["id"], "functions.get_weather:1")

    def test_other_doors(self):
        answer = self.ask("/v1/responses", {"input": "Rome?", "tool_choice": "required", "max_output_tokens": 60,
                                            "parallel_tool_calls": False,
                                            "tools": [{"type": "function", "name": "f", "parameters": TOOL}]})
        self.assertEqual([item["call_id"] for item in answer["output"]], ["functions.f:0"])
        answer = self.ask("/v1/messages", {"messages": [{"role": "user", "content": "Rome?"}], "max_tokens": 60,
                                           "tools": [{"name": "f", "input_schema": TOOL}],
                                           "tool_choice": {"type": "tool", "name": "f",
                                                           "disable_parallel_tool_use": True}})
        self.assertEqual([block["id"] for block in answer["content"]], ["functions.f:0"])


if __name__ == "__main__":
    served_model.main()
