"""DSPy against `atoll serve`."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices
import dspy

import served_model
from served_model import API_KEY, SCRIPTS, say


class DsPy(served_model.ScriptedModelCase):
    def lm(self, name="tiny", **more):
        return dspy.LM("openai/" + name, api_base=self.url, api_key=API_KEY, cache=False,
                       max_tokens=200, num_retries=0, **more)

    def test_chat_and_usage(self):
        lm = self.lm()
        self.assertEqual(lm(say("answer")), [SCRIPTS["answer"]])
        self.assertGreater(lm.history[-1]["usage"]["completion_tokens"], 3)

    def test_responses(self):
        answer = self.lm(model_type="responses")(say("answer"))[0]
        self.assertEqual(answer["text"] if isinstance(answer, dict) else answer, SCRIPTS["answer"])

    def test_predict(self):
        with dspy.context(lm=self.lm()):
            answer = dspy.Predict("question -> answer")(question=say("fields"))
        self.assertEqual(answer.answer, "Paris, of course")

    def test_predict_as_json(self):
        with dspy.context(lm=self.lm(), adapter=dspy.JSONAdapter()):
            answer = dspy.Predict("question -> name: str, age: int")(question=say("person"))
        self.assertEqual((answer.name, answer.age), ("Ada Lovelace", 36))

    def test_stream(self):
        async def run():
            program = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[
                dspy.streaming.StreamListener(signature_field_name="answer")])
            with dspy.context(lm=self.lm()):
                return [piece async for piece in program(question=say("fields"))]

        *pieces, last = served_model.wait(run())
        self.assertEqual(last.answer, "Paris, of course")
        self.assertEqual("".join(piece.chunk for piece in pieces).strip(), "Paris, of course")

    def test_error(self):
        with self.assertRaisesRegex(Exception, "does not exist|not served|404|NotFound"):
            self.lm(name="other")("hi")


if __name__ == "__main__":
    served_model.main()
