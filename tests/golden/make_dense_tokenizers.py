#!/usr/bin/env python3
"""Writes dense_tokenizers.jsonl: what the tokenizers of Qwen2 and Llama 3 have that DeepSeek's have
not (normalization form C; ignore_merges; a BOS by template; their patterns), put into tiny-fp8's
tokenizer, and the ids that the Hugging Face tokenizers library gives with each.

Made with tokenizers 0.23.3. Run: python make_dense_tokenizers.py > dense_tokenizers.jsonl
"""
import json
import os
import random

import tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "..", "models", "tiny-fp8", "tokenizer.json")
QWEN2 = (r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"""
         r"""\s*[\r\n]+|\s+(?!\S)|\s+""")
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def steps(pattern):
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]}


def added(base, content, special, normalized):
    ids = [t["id"] for t in base["added_tokens"]]
    return {"id": max(ids) + 1, "content": content, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": normalized, "special": special}


def qwen2(base):
    base["normalizer"] = {"type": "NFC"}
    base["pre_tokenizer"] = steps(QWEN2)
    for content, special, normalized in [("<|im_start|>", True, False), ("<|im_end|>", True, False),
                                         ("<tool_call>", False, False), ("Caf\u00e9", False, True)]:
        base["added_tokens"].append(added(base, content, special, normalized))


def llama3(base):
    base["pre_tokenizer"] = steps(LLAMA3)
    base["model"]["ignore_merges"] = True
    # Whole pieces that no merge leads to; the library numbers added tokens behind the vocabulary.
    words, vocab = ["Whalers", "\u0120Queequegs", "\u0120\u00c3\u00a9t\u00c3\u00a9"], base["model"]["vocab"]
    for token in base["added_tokens"]:
        token["id"] += len(words) if token["content"] not in vocab else 0
    for word in words:
        assert word not in vocab
        vocab[word] = len(vocab)
    base["added_tokens"].append(added(base, "<|begin_of_text|>", True, False))
    bos = base["added_tokens"][-1]
    base["post_processor"] = {"type": "Sequence", "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {"type": "TemplateProcessing",
         "single": [{"SpecialToken": {"id": bos["content"], "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}}],
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
         "special_tokens": {bos["content"]: {"id": bos["content"], "ids": [bos["id"]],
                                             "tokens": [bos["content"]]}}}]}


TEXTS = ["I'LL say it's 12345 whales, they'Ve", "Whalers Queequegs Whale Queequeg \u00e9t\u00e9 e\u0301te\u0301",
         "Cafe\u0301 Caf\u00e9 <|im_start|>user\nHi<|im_end|>\n<tool_call>", "\u1112\u1161\u11ab\u1100\u1173\u11af",
         "a\u0323\u0307 a\u0307\u0323 \u1e69 s\u0323\u0307", "\u212b \u2126 \u0958 \ufb1d \U0001d15e \u2adc", "  x\n\n\r\n y  ",
         "\u0301", "\u0301\u0302a", "<|begin_of_text|>x", "\uac00\u11a8", "\u0344\u0343", "", "1\u0660\u00bd\u2075"]


def texts():
    yield from TEXTS
    rng = random.Random(7)
    letters = ("abcAOe \n'12" "\u00e9\u00c5\u0300\u0301\u0302\u0307\u0308\u030a\u0323\u0327\u0328\u0345\u1100\u1161\u11a8"
               "\uac00\u0915\u093c\u09c7\u09be\u05d0\u05b7\u0627\u0653\u4e2d\u3042\u3099\u2126\u212b\U0001d157\U0001d165")
    for _ in range(250):
        yield "".join(rng.choice(letters) for _ in range(rng.randint(1, 24)))
    # All code points of some blocks with marks, and letters made of parts.
    for begin, end in [(0xc0, 0x250), (0x300, 0x370), (0x900, 0xe00), (0x1e00, 0x2000), (0x2100, 0x2140),
                       (0xf900, 0xfb50), (0x11000, 0x11400), (0x1d100, 0x1d200)]:
        chars = [chr(c) for c in range(begin, end)]
        for at in range(0, len(chars), 64):
            yield "".join(chars[at:at + 64])


def main():
    assert tokenizers.__version__ == "0.23.3"
    for kind in (qwen2, llama3):
        with open(MODEL, encoding="utf-8") as file:
            base = json.load(file)
        before = json.loads(json.dumps(base))
        kind(base)
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(base))
        changed = {key: value for key, value in base.items() if value != before[key] and key != "model"}
        new_vocab = {k: v for k, v in base["model"]["vocab"].items() if k not in before["model"]["vocab"]}
        print(json.dumps({"kind": kind.__name__, "set": changed, "vocab": new_vocab,
                          "ignore_merges": base["model"].get("ignore_merges", False)}))
        for text in texts():
            print(json.dumps({"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids,
                              "with_special": tokenizer.encode(text, add_special_tokens=True).ids[:1]}))


if __name__ == "__main__":
    main()
