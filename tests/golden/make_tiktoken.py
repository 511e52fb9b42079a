#!/usr/bin/env python3
"""Ids of tiktoken (0.14) with Kimi-K2's pattern for made-up texts.

usage: make_tiktoken.py OUT [--count N] [--seed S] [--ranks FILE]
Writes OUT/tiktoken.model, OUT/tokenizer_config.json and OUT/ids.jsonl, lines of {"text", "ids"}. The
ranks are those of FILE (a published *.tiktoken), or else frequent byte strings of such texts, cut
without regard to the pattern, so that where a text is cut shows in the ids. The pattern and the
names of unnamed tokens are those of moonshotai's tokenization_kimi.py.
"""
import argparse
import base64
import collections
import json
import os
import random
import tiktoken
import tiktoken.load

PATTERN = "|".join([
    r"""[\p{Han}]+""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""",
    r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
    r"""\s*[\r\n]+""",
    r"""\s+(?!\S)""",
    r"""\s+""",
])
NAMED = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 6: "<|start_header_id|>",
         7: "<|end_header_id|>", 9: "[EOT]", 10: "<|im_system|>", 11: "<|tool_calls_section_begin|>",
         12: "<|tool_calls_section_end|>", 13: "<|tool_call_begin|>", 14: "<|tool_call_argument_begin|>", 15: "<|tool_call_end|>",
         17: "<|im_middle|>", 254: "[UNK]", 255: "[PAD]"}
NOT_SPECIAL = range(11, 16)
WORDS = """the and Call me Ishmael don't WE'LL they'RE I'm It'd you'Ve o'clock 's 'S rock'n'roll camelCase HTTPServer
McDonald ÉCOLE naïve Straße ИВАН иван Ώρα ǅabc İstanbul ſ 'ſ K ﬁne 中文 你好世界 我是Moonshot 々〆 〇 漢字かな カタカナ 한국어 ไทย हिन्दी
العربية עברית é́ x̂ 😀 👩‍💻 🇨🇳 ½ ² ٣ 一二三 1234567 3.14 0x1F __init__ f(x); //NOTE {"a":1} <b> ... --- !!! （中） 「」 ，。
\u200b \u200d \u00ad \ufeff \U00020000 \U000e0100 ꙮ ªº Ⅷ ⅷ ㈱""".split()
SPACES = [" ", " ", " ", "", "", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", " \n", "\n  ", "\u00a0", "\u2003", "\u3000", "\u0085", "\u2028", "\x0b", "\x1c"]


def text(rng, named):
    out = []
    for _ in range(rng.choice((1, 2, 3, 5, 8, 13, 30))):
        kind = rng.random()
        if kind < .7:
            word = rng.choice(WORDS)
        elif kind < .8:
            word = "".join(chr(rng.choice((rng.randrange(0x20, 0x250), rng.randrange(0x2e80, 0xa000), rng.randrange(0xa000, 0xd800),
                                           rng.randrange(0xe000, 0x11000), rng.randrange(0x370, 0x2000), rng.randrange(0x1f000, 0x32000))))
                           for _ in range(rng.randrange(1, 6)))
        elif kind < .95:
            word = "".join(rng.choice("abcXYZ019 '.,中é́\n") for _ in range(rng.randrange(1, 12)))
        else:
            word = rng.choice(named)
        out.append(word + rng.choice(SPACES))
    return "".join(out)


def frequent(texts, number):
    """All bytes, then the most frequent strings of 2 to 8 bytes, short ones first."""
    counts = collections.Counter()
    for t in texts:
        b = t.encode()
        for n in range(2, 9):
            counts.update(b[i:i + n] for i in range(len(b) - n + 1))
    best = sorted((-count * len(s), s) for s, count in counts.items() if count > 3)[:number]
    return [bytes([b]) for b in range(256)] + sorted((s for _, s in best), key=lambda s: (len(s), s))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("out")
    arguments.add_argument("--count", type=int, default=400)
    arguments.add_argument("--seed", type=int, default=17)
    arguments.add_argument("--ranks")
    options = arguments.parse_args()
    rng = random.Random(options.seed)
    if options.ranks:
        ranks = tiktoken.load.load_tiktoken_bpe(options.ranks)
    else:
        ranks = {s: i for i, s in enumerate(frequent([text(rng, [" "]) for _ in range(1500)], 1500))}
    n = len(ranks)
    special = {NAMED.get(i, f"<|reserved_token_{n + i}|>"): n + i for i in range(256)}
    encoding = tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    os.makedirs(options.out, exist_ok=True)
    with open(options.out + "/tiktoken.model", "wb") as file:
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            file.write(base64.b64encode(token) + b" " + str(rank).encode() + b"\n")
    added = {str(n + i): {"content": name, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                          "special": i not in NOT_SPECIAL} for i, name in NAMED.items()}
    with open(options.out + "/tokenizer_config.json", "w") as file:
        json.dump({"added_tokens_decoder": added, "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]",
                   "pad_token": "[PAD]", "tokenizer_class": "TikTokenTokenizer",
                   "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]}}, file, indent=1)
    names = list(special)[:20]
    with open(options.out + "/ids.jsonl", "w") as file:
        for _ in range(options.count):
            t = text(rng, names)
            file.write(json.dumps({"text": t, "ids": encoding.encode(t, allowed_special="all")}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
