"""lm-evaluation-harness's local-completions against `atoll serve`: the loglikelihoods of a task of arc_easy's shape are those
that `atoll eval` has for the same tokens.
"""

import array
import json
import logging
import os
import subprocess
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
import lm_eval
import numpy as np
from lm_eval.models.openai_completions import LocalCompletionsAPI

import served_model
import streams
from served_model import API_KEY, MODEL_DIR

TOLERANCE = 1e-6
PAD = 5
QUESTIONS = [
    ("Who says that light shall be?", ["God", "the whale", "Ishmael", "Congress"], "A"),
    ("What do sailors of the Pequod hunt?", ["birds", "a white whale", "gold"], "B"),
    ("Who speaks of the state of the Union?", ["a king", "a president", "a harpooneer", "nobody at all"], "B"),
    ("Which of these is water?", ["the sea", "the mast", "the bread"], "1"),
    ("What was without form, and void?", ["the ship", "the earth", "the law", "the House"], "B"),
    ("In which month is Christmas?", ["in July", "in December"], "B"),
    ("", ["an empty question", "1234567 + 89 = 99"], "A"),
    ("日本語で答えてください。", ["はい", "いいえ — no"], "A"),
]


def task(folder):
    path = os.path.join(folder, "questions.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        for question, texts, key in QUESTIONS:
            labels = list("1234" if key.isdigit() else "ABCD")[:len(texts)]
            file.write(json.dumps({"question": question, "answerKey": key,
                                   "choices": {"text": texts, "label": labels}}) + "\n")
    return {"task": "arc_shaped", "dataset_path": "json", "test_split": "train",
            "dataset_kwargs": {"data_files": path}, "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:", "doc_to_choice": "{{choices.text}}",
            "doc_to_target": "{{choices.label.index(answerKey)}}",
            "should_decontaminate": False,
            "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True}
                            for name in ("acc", "acc_norm")]}


class LmEval(served_model.ServedModelCase):
    def model(self, **more):
        os.environ["OPENAI_API_KEY"] = API_KEY
        return LocalCompletionsAPI(base_url=self.url + "/completions", model="tiny",
                                   auth_token=API_KEY, max_retries=1, max_length=2048, **more)

    def logprobs_of_eval(self, rows):
        """Of each row, of its tokens from the second on: by `atoll eval`'s logits, in double precision."""
        length = max(map(len, rows))
        with tempfile.TemporaryDirectory() as folder:
            tokens, logits = os.path.join(folder, "tokens"), os.path.join(folder, "logits")
            with open(tokens, "wb") as file:
                for row in rows:
                    array.array("i", row + [PAD] * (length - len(row))).tofile(file)
            subprocess.run([os.environ["ATOLL_BINARY"], "eval", MODEL_DIR, "--tokens", tokens, "--dtype",
                            "i32", "--row-length", str(length), "--logits-out", logits], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            values = np.fromfile(logits, np.float32).astype(np.float64).reshape(len(rows), length, -1)
        values -= values.max(axis=-1, keepdims=True)
        values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
        return [[values[i, at - 1, row[at]] for at in range(1, len(row))] for i, row in enumerate(rows)]

    def tokens(self, text):
        status, answer = streams.post(self.server.url, "/tokenize",
                                      {"prompt": text, "add_special_tokens": False}, API_KEY)
        self.assertEqual(status, 200, answer)
        return answer["tokens"]

    def check(self, results):
        """Every loglikelihood of the samples; how many there are."""
        requests = [(context, continuation, answer) for sample in results["samples"]["arc_shaped"]
                    for (context, continuation), answer in zip(
                        [pair.values() if isinstance(pair, dict) else pair for pair in
                         (sample["arguments"].values() if isinstance(sample["arguments"], dict)
                          else sample["arguments"])], sample["filtered_resps"])]
        # What lm-evaluation-harness takes for the tokens of a pair: trailing space goes to the continuation.
        wholes = [self.tokens(context + continuation) for context, continuation, _ in requests]
        contexts = [len(self.tokens(context)) for context, _, _ in requests]
        expected = [sum(row[begin - 1:]) for row, begin in
                    zip(self.logprobs_of_eval(wholes), contexts)]
        worst = max(abs(answer[0] - value) for (_, _, answer), value in zip(requests, expected))
        print(f"{len(requests)} loglikelihoods, worst difference {worst:.3g}")
        self.assertLess(worst, TOLERANCE)
        return len(requests)

    def test_loglikelihoods_are_those_of_eval(self):
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        texts = sum(len(texts) for _, texts, _ in QUESTIONS)
        for more in ({}, {"batch_size": 4, "num_concurrent": 3}):
            with self.subTest(**more), tempfile.TemporaryDirectory() as folder:
                results = lm_eval.simple_evaluate(
                    model=self.model(**more), tasks=[task(folder)], bootstrap_iters=0,
                    log_samples=True, cache_requests=False)
                self.assertEqual(self.check(results), texts)
                self.assertIn("acc,none", results["results"]["arc_shaped"])

    def test_rolling(self):
        text = "Call me Ishmael. Some years ago, never mind how long precisely. " * 4
        # Without being told, it takes a BOS of id 0 for none.
        (value,) = self.model(custom_prefix_token_id=0).loglikelihood_rolling([lm_eval.api.instance.Instance(
            request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)])
        (row,) = self.logprobs_of_eval([[0, *self.tokens(text)]])
        self.assertAlmostEqual(value, sum(row), delta=TOLERANCE)


if __name__ == "__main__":
    served_model.main()
