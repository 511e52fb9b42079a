"""aider, the command-line tool, against `atoll serve`: it edits a file as the model says."""

import os
import subprocess
import sys

import served_model
from served_model import API_KEY, SCRIPTS, say


class Aider(served_model.ScriptedModelCase):
    def setUp(self):
        self.work = os.path.join(self.folder.name, self.id().rsplit(".", 1)[-1])
        os.mkdir(self.work)
        with open(os.path.join(self.work, "greeting.py"), "w", encoding="utf-8") as file:
            file.write('print("hi")\n')

    def greeting(self):
        with open(os.path.join(self.work, "greeting.py"), encoding="utf-8") as file:
            return file.read()

    def aider(self, *arguments, model="openai/tiny"):
        environment = {**os.environ, "OPENAI_API_BASE": self.url, "OPENAI_API_KEY": API_KEY,
                       "ANTHROPIC_API_BASE": self.server.url, "ANTHROPIC_API_KEY": API_KEY,
                       "HOME": self.work, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        result = subprocess.run(
            [sys.executable, "-m", "aider", "--model", model, "--weak-model", model, "--no-git",
             "--yes-always", "--no-show-model-warnings", "--no-check-update", "--analytics-disable",
             "--no-pretty", "--no-auto-lint", "--no-detect-urls", "--no-fancy-input",
             "--no-gitignore", *arguments, "greeting.py"],
            cwd=self.work, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=200)
        return result.stdout + result.stderr

    def test_edit(self):
        out = self.aider("--stream", "--edit-format", "diff", "--message", say("edit"))
        self.assertEqual(self.greeting(), 'print("hello, world")\n', out)

    def test_edit_by_messages(self):
        out = self.aider("--no-stream", "--edit-format", "diff", "--message", say("edit"),
                         model="anthropic/tiny")
        self.assertEqual(self.greeting(), 'print("hello, world")\n', out)

    def test_question_and_usage(self):
        out = self.aider("--edit-format", "ask", "--message", say("answer"))
        self.assertIn(SCRIPTS["answer"], out)
        self.assertRegex(out, r"Tokens: .* sent, .* received")
        self.assertEqual(self.greeting(), 'print("hi")\n')

    def test_error(self):
        out = self.aider("--message", "hi", model="openai/other")
        self.assertIn("does not exist", out)


if __name__ == "__main__":
    served_model.main()
