"""`atoll serve` of the bundled tiny model for the tests of one file."""

import os
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL_DIR = os.path.join(ROOT, "tests", "models", "tiny-bf16")
API_KEY = "sk-of-the-test-0123456789"


class ServedModel:
    """One server process on a free port of the loopback interface."""

    def __init__(self, key_file):
        with open(key_file, "w", encoding="ascii") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(f"tests {API_KEY}\n")
        self.process = subprocess.Popen(
            [os.environ["ATOLL_BINARY"], "serve", MODEL_DIR, "--port", "0", "--model-name", "tiny",
             "--nodes", "0", "--api-key-file", key_file],
            stdout=subprocess.PIPE, text=True)
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
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.server = ServedModel(os.path.join(cls.folder.name, "keys"))

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        cls.folder.cleanup()
        assert code == 0, f"atoll serve ended with {code}"


def main():
    unittest.main(argv=[sys.argv[0], "-v"])
