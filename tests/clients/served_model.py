"""`atoll serve` for the tests of one file: of the bundled tiny model, which says anything, or of one that says scripts.

`<<say a,b,c>>` in a message picks scripts of scripts.json: the first answer behind it is `a`, the second `b`, ...; the
last one stands for all further ones. Without it the answer is `hello`. A forced call has `person` or `wrapped` for arguments,
if its schema allows that.
"""

import asyncio
import ctypes
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, os.path.join(ROOT, "tests", "support"))
import scripted_model  # noqa: E402

MODEL_DIR = os.path.join(ROOT, "tests", "models", "tiny-bf16")
API_KEY = "sk-of-the-test-0123456789"
with open(os.path.join(HERE, "scripts.json"), encoding="utf-8") as _file:
    SCRIPTS = json.load(_file)


_loop = asyncio.new_event_loop()


def wait(coroutine):
    """Its result. One loop for all: clients keep connections from one test to the next."""
    return _loop.run_until_complete(coroutine)


def say(*names, behind="What is it like outside?"):
    """A message that makes the scripted model say these."""
    assert all(name in SCRIPTS for name in names)
    return f"<<say {','.join(names)}>> {behind}"


def _end_with_parent():
    """A test that is killed leaves no server."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class ServedModel:
    """One server process on a free port of the loopback interface."""

    def __init__(self, key_file, model_dir=MODEL_DIR):
        with open(key_file, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"tests {API_KEY}\n")
        self.process = subprocess.Popen(
            [os.environ["ATOLL_BINARY"], "serve", model_dir, "--port", "0", "--model-name", "tiny",
             "--nodes", "0", "--api-key-file", key_file],
            stdout=subprocess.PIPE, text=True, preexec_fn=_end_with_parent)
        line = self.process.stdout.readline()
        if not line.startswith("listening on "):
            raise RuntimeError(f"atoll serve did not start: {line!r}")
        self.url = line.split()[-1]

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self.process.stdout.close()


class ServedModelCase(unittest.TestCase):
    """Test cases that share one server, which must end with 0."""

    @classmethod
    def model_dir(cls):
        return MODEL_DIR

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.server = ServedModel(os.path.join(cls.folder.name, "keys"), cls.model_dir())
        cls.url = cls.server.url + "/v1"

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        cls.folder.cleanup()
        assert code == 0, f"atoll serve ended with {code}"


class ScriptedModelCase(ServedModelCase):
    """The same with the model that says scripts."""

    @classmethod
    def model_dir(cls):
        return _scripted_model().name


@functools.cache
def _scripted_model():
    folder = tempfile.TemporaryDirectory()
    with open(os.path.join(HERE, "scripted.jinja"), encoding="utf-8") as file:
        scripted_model.write_model(SCRIPTS, file.read(), folder.name,
                                   after={"<｜tool▁sep｜>": ("person", "wrapped")})
    return folder


def main():
    unittest.main(argv=[sys.argv[0], "-v"], warnings="ignore")
