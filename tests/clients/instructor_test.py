"""instructor against `atoll serve`, in each of its modes that OpenAI's API can serve."""

from typing import Literal

import instructor
import openai
from pydantic import BaseModel, Field

import served_model
from served_model import API_KEY, say, wait


class Person(BaseModel):
    name: str
    age: int


ADA = {"name": "Ada Lovelace", "age": 36}


class Instructor(served_model.ScriptedModelCase):
    def client(self, mode=instructor.Mode.TOOLS, kind=openai.OpenAI):
        client = kind(base_url=self.url, api_key=API_KEY, max_retries=0)
        return instructor.from_openai(client, mode=mode)

    def ask(self, text=say("person"), kind=Person, mode=instructor.Mode.TOOLS, **more):
        return self.client(mode).chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": text}], response_model=kind,
            max_tokens=200, max_retries=0, **more)

    def test_modes(self):
        for mode in ("TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA", "MD_JSON"):
            with self.subTest(mode):
                self.assertEqual(self.ask(mode=instructor.Mode[mode]).model_dump(), ADA)

    def test_responses(self):
        answer = self.client(instructor.Mode.RESPONSES_TOOLS).responses.create(
            model="tiny", input=say("person"), response_model=Person, max_retries=0)
        self.assertEqual(answer.model_dump(), ADA)

    def test_partial_stream(self):
        answers = list(self.client().chat.completions.create_partial(
            model="tiny", messages=[{"role": "user", "content": say("person")}],
            response_model=Person, max_tokens=200))
        self.assertEqual(answers[-1].model_dump(), ADA)
        self.assertGreater(len(answers), 1)

    def test_schema_of_its_own(self):
        class Order(BaseModel):
            size: Literal["small", "large"]
            count: int = Field(ge=1, le=9)
            toppings: list[Literal["olives", "onions"]] = Field(max_length=2)

        answer = self.ask("An order", kind=Order, temperature=1, seed=4)
        self.assertIn(answer.size, ("small", "large"))

    def test_usage_and_asynchronous(self):
        async def ask():
            return await self.client(kind=openai.AsyncOpenAI).chat.completions.create_with_completion(
                model="tiny", messages=[{"role": "user", "content": say("person")}],
                response_model=Person, max_tokens=200)

        answer, completion = wait(ask())
        self.assertEqual(answer.model_dump(), ADA)
        self.assertGreater(completion.usage.completion_tokens, 3)

    def test_asks_again_with_what_was_wrong(self):
        with self.assertRaises(Exception) as raised:  # `answer` is no JSON, twice
            self.client(instructor.Mode.MD_JSON).chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": say("answer")}],
                response_model=Person, max_tokens=200, max_retries=1)
        self.assertNotIsInstance(raised.exception, openai.OpenAIError)
        self.assertEqual(raised.exception.n_attempts, 2)

    def test_error(self):
        with self.assertRaisesRegex(Exception, "404"):
            self.client().chat.completions.create(
                model="other", messages=[{"role": "user", "content": "hi"}], response_model=Person,
                max_retries=0)


if __name__ == "__main__":
    served_model.main()
