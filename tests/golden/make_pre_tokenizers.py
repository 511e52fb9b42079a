#!/usr/bin/env python3
"""Writes pre_tokenizers.jsonl: patterns with a script, && and nested classes (Kimi-K2's among them),
and the ids that the Hugging Face tokenizers library gives with each in tiny-fp8's tokenizer.

Made with tokenizers 0.23.3. Run: python make_pre_tokenizers.py > pre_tokenizers.jsonl
"""
import json
import os
import random

import tokenizers

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "..", "models", "tiny-fp8", "tokenizer.json")
# moonshotai/Kimi-K2-Instruct, tokenization_kimi.py: pat_str.
KIMI = "|".join([
    r"""[\p{Han}]+""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n]*""", r"""\s*[\r\n]+""", r"""\s+(?!\S)""", r"""\s+"""])
PATTERNS = [KIMI, r"[\p{Han}]+|[^\p{Han}]+", r"[\p{L}&&[^a-c]]+|.", r"[\p{Lu}\p{M}&&[^\p{N}]]+|[^A-Z]+",
            r"[^\p{L}&&\p{Han}]+|.", r"[a-z&&[^aeiou]&&[^xyz]]+|.", r"[[a-c][x-z]1]+|.", r"\P{Han}+|."]
TEXTS = ["Das abc 的 ABC's", "中文 and English混合 123 们's", "Hello WORLD'S it's don't", "々〇仝 ㊀ 豈更 𠀀𪛟", "éÉñ Ω的ω", "  a\n\n b\r\n", "",
         "日本語のテスト한국어", "x1y2z3 --- !!!\n", "ǅǈ ʰʱ ́a"]


def main():
    assert tokenizers.__version__ == "0.23.3"
    with open(MODEL, encoding="utf-8") as file:
        base = json.load(file)
    rng = random.Random(5)
    letters = "abcXYZ的中々 ’'\n\r 1½²éÉ한ひカー́ǅ!？𠀀🙂"
    texts = TEXTS + ["".join(rng.choice(letters) for _ in range(rng.randint(1, 30))) for _ in range(60)]
    for pattern in PATTERNS:
        base["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(base))
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            print(json.dumps({"pattern": pattern, "text": text, "ids": ids}, ensure_ascii=False))


if __name__ == "__main__":
    main()
