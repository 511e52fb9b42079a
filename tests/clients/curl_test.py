"""curl against `atoll serve`, as docs/serving.md shows it."""

import json
import shutil
import subprocess
import unittest

import served_model
from served_model import API_KEY, ServedModelCase


@unittest.skipUnless(shutil.which("curl"), "curl is not installed")
class Curl(ServedModelCase):
    def curl(self, path, *arguments, key=API_KEY):
        """Status and body."""
        result = subprocess.run(
            ["curl", "--silent", "--show-error", "--max-time", "60", "--write-out",
             "\n%{http_code}", "--header", f"Authorization: Bearer {key}", *arguments,
             self.server.url + path], capture_output=True, text=True, check=True)
        body, status = result.stdout.rsplit("\n", 1)
        return int(status), body

    def test_completion(self):
        # -d sends application/x-www-form-urlencoded, which is no obstacle.
        status, body = self.curl("/v1/completions", "-d",
                                 '{"prompt": "And God said,", "max_tokens": 8}')
        self.assertEqual(status, 200)
        self.assertEqual(json.loads(body)["usage"]["completion_tokens"], 8)

    def test_stream(self):
        status, body = self.curl(
            "/v1/chat/completions", "--no-buffer", "-d",
            '{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": true}')
        self.assertEqual(status, 200)
        events = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
        self.assertEqual(events[-1], "[DONE]")
        self.assertEqual(json.loads(events[0])["choices"][0]["delta"]["role"], "assistant")

    def test_tokens(self):
        status, body = self.curl("/tokenize", "-d", '{"prompt": "And God said,"}')
        self.assertEqual(status, 200)
        status, text = self.curl("/detokenize", "-d",
                                 json.dumps({"tokens": json.loads(body)["tokens"][1:]}))
        self.assertEqual((status, json.loads(text)["prompt"]), (200, "And God said,"))

    def test_what_an_operator_looks_at(self):
        for path in ("/health", "/version", "/v1/models", "/models", "/metrics", "/stats"):
            self.assertEqual(self.curl(path)[0], 200, path)
        self.assertEqual(json.loads(self.curl("/stats")[1])["model"]["name"], "tiny")
        self.curl("/v1/completions", "-d", '{"prompt": "a", "max_tokens": 1}')
        self.assertEqual(self.curl("/ready")[0], 200)

    def test_keys(self):
        self.assertEqual(self.curl("/v1/models", key="sk-wrong-key")[0], 401)
        self.assertEqual(self.curl("/health", key="sk-wrong-key")[0], 200)

    def test_head_and_wrong_methods(self):
        self.assertEqual(self.curl("/health", "--head")[0], 200)
        self.assertEqual(self.curl("/v1/completions")[0], 405)
        self.assertEqual(self.curl("/nothing")[0], 404)


if __name__ == "__main__":
    served_model.main()
