#!/usr/bin/env python3
"""Writes a small model of DeepSeek-V3's shape that says given texts: for tests of all that lies behind the logits.

A text (script) is cut into pieces of 2 to 12 bytes (longer ones if there are no others), also within a character. They become tokens that no merge makes, so that
only the model says them; each has one place in one script.
Attention and experts give zero, so a token's hidden vector is its embedding: 512 random signs. The head's row of
its successor is the same vector, so that token has a logit of 512 before the norm, any other one about 23 times a
normal number: greedy decoding behind the token `⟦NAME⟧` says script NAME, and so does sampling. The last piece of a
script has a value of its own in dimension 0, which the end token's row alone reads. Tokens, decoder, stop strings,
reply parser, JSON and streams are the real ones. No two runs differ in a byte.

usage: scripted_model.py SCRIPTS.json TEMPLATE.jinja OUT
  SCRIPTS.json    {"NAME": "text", ...}
  TEMPLATE.jinja  ends its prompt with `⟦NAME⟧`, or with `⟦NAME⟧<think>`, if it opens the reasoning
"""

import functools
import json
import os
import random
import struct
import sys

BASE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "models", "tiny-bf16")
HIDDEN, HEADS, NOPE, ROPE, RANK, VALUE, FFN, MOE, EXPERTS = 512, 4, 32, 16, 64, 32, 128, 64, 4
PIECE_MAX = 12
END = 1  # the end-of-sequence token of tiny-bf16's tokenizer
ONE, SMALL, LARGE, MINUS = 0x3F80, 0x3CA4, 0x4280, 0x8000  # 1, 0.02, 64 and the sign in BF16


def byte_alphabet():
    """How a byte-level vocabulary writes each byte: GPT-2's bytes_to_unicode."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def cut(text, used, rng):
    """Pieces of `text`, none of them in `used`, which they are put into."""
    for attempt in range(1000):
        longest, pieces, at = PIECE_MAX + attempt // 20, [], 0
        while at < len(text):
            lengths = [n for n in range(2, min(longest, len(text) - at) + 1)
                       if text[at:at + n] not in used and text[at:at + n] not in pieces]
            if not lengths:
                break
            pieces.append(text[at:at + rng.choice(lengths)])
            at += len(pieces[-1])
        else:
            used.update(pieces)
            return pieces
    raise SystemExit(f"no cut of {text!r} into pieces that nothing else has: make it longer")


def add_scripts(tokenizer, scripts, after, rng):
    """Adds the scripts' tokens. Returns {id: id of its successor}, {id: several of them},
    {name: number of pieces} and the number of ids."""
    added, vocab = tokenizer["added_tokens"], tokenizer["model"]["vocab"]
    alphabet = byte_alphabet()
    used = set(vocab)
    next_id = 1 + max([*vocab.values(), *(token["id"] for token in added)])
    successor, begins, lengths = {}, {}, {}
    for name, text in scripts.items():
        pieces = cut("".join(alphabet[byte] for byte in text.encode()), used, rng)
        ids = [*range(next_id, next_id + len(pieces))]
        vocab.update(zip(pieces, ids))
        lengths[name] = len(ids)
        successor.update(zip(ids, [*ids[1:], END]))
        next_id += len(ids)
        for tail in ("", "<think>", "<think>\n"):
            added.append({"id": next_id, "content": f"⟦{name}⟧{tail}", "single_word": False,
                          "lstrip": False, "rstrip": False, "normalized": False, "special": False})
            successor[next_id] = ids[0]
            next_id += 1
        for token in added:
            if name in after.get(token["content"], ()):
                begins.setdefault(token["id"], []).append(ids[0])
    return successor, begins, lengths, next_id


@functools.cache
def eights(magnitude):
    """For each byte eight BF16 values, little-endian, with its bits as signs."""
    values = [struct.pack("<H", magnitude), struct.pack("<H", magnitude | MINUS)]
    return [b"".join(values[byte >> bit & 1] for bit in range(8)) for byte in range(256)]


def signs(count, magnitude, rng):
    """`count` BF16 values of one magnitude."""
    table = eights(magnitude)
    return b"".join(table[byte] for byte in rng.randbytes(count // 8))


def added_up(rows):
    """The sum of vectors of signs."""
    values = [sum(column) for column in zip(*(
        [0 if bits == 0 else -1 if bits & MINUS else 1 for bits in struct.unpack(f"<{HIDDEN}H", row)]
        for row in rows))]
    return b"".join(struct.pack("<f", value)[2:] for value in values)  # exact in BF16


def tensors(successor, begins, vocab_size, rng):
    """Name, dtype, shape, bytes."""
    def bf16(name, data, *shape):
        return name, "BF16", shape, data

    def ones(name, size):
        return bf16(name, struct.pack("<H", ONE) * size, size)

    def some(name, rows, columns):
        return bf16(name, signs(rows * columns, SMALL, rng), rows, columns)

    def zeros(name, rows, columns):
        return bf16(name, bytes(2 * rows * columns), rows, columns)

    first = lambda value: struct.pack("<H", value)
    embedding = [bytes(2) + signs(HIDDEN, ONE, rng)[2:] for _ in range(vocab_size)]
    head = [bytes(2 * HIDDEN)] * vocab_size
    head[END] = first(LARGE) + bytes(2 * (HIDDEN - 1))
    before = {}
    for token, after in successor.items():
        if after == END:
            embedding[token] = first(LARGE) + embedding[token][2:]
        elif after in before:  # a start: one vector for all of a script
            embedding[token] = embedding[before[after]]
        else:
            before[after] = token
            head[after] = embedding[token]
    for token, ids in begins.items():
        embedding[token] = added_up([head[i] for i in ids])
    yield bf16("model.embed_tokens.weight", b"".join(embedding), vocab_size, HIDDEN)
    yield bf16("lm_head.weight", b"".join(head), vocab_size, HIDDEN)
    yield ones("model.norm.weight", HIDDEN)
    for layer in range(2):
        at = f"model.layers.{layer}."
        yield ones(at + "input_layernorm.weight", HIDDEN)
        yield ones(at + "post_attention_layernorm.weight", HIDDEN)
        yield some(at + "self_attn.q_proj.weight", HEADS * (NOPE + ROPE), HIDDEN)
        yield some(at + "self_attn.kv_a_proj_with_mqa.weight", RANK + ROPE, HIDDEN)
        yield ones(at + "self_attn.kv_a_layernorm.weight", RANK)
        yield some(at + "self_attn.kv_b_proj.weight", HEADS * (NOPE + VALUE), RANK)
        yield zeros(at + "self_attn.o_proj.weight", HIDDEN, HEADS * VALUE)
        mlps = [("mlp.", FFN)]
        if layer > 0:
            yield some(at + "mlp.gate.weight", EXPERTS, HIDDEN)
            yield at + "mlp.gate.e_score_correction_bias", "F32", (EXPERTS,), bytes(4 * EXPERTS)
            mlps = [(f"mlp.experts.{e}.", MOE) for e in range(EXPERTS)]
            mlps.append(("mlp.shared_experts.", MOE))
        for name, width in mlps:
            yield some(at + name + "gate_proj.weight", width, HIDDEN)
            yield some(at + name + "up_proj.weight", width, HIDDEN)
            yield zeros(at + name + "down_proj.weight", HIDDEN, width)


def write_safetensors(path, all_tensors):
    header, blobs, at = {}, [], 0
    for name, dtype, shape, data in all_tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        blobs.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(blobs)


def read_json(name):
    with open(os.path.join(BASE, name), encoding="utf-8") as file:
        return json.load(file)


def write_model(scripts, template, out, context=8192, after={}):
    """`scripts`: {name: text}; `template`: the chat template's text; `out`: a folder, made; `after`: {added token: names
    of scripts that come behind it; of these the first one that a grammar allows}. Returns how many tokens each script has, without the end token."""
    os.makedirs(out, exist_ok=True)
    rng = random.Random(7)
    tokenizer = read_json("tokenizer.json")
    successor, begins, lengths, vocab_size = add_scripts(tokenizer, scripts, after, rng)
    vocab_size += -vocab_size % 128
    write_safetensors(os.path.join(out, "model.safetensors"), tensors(successor, begins, vocab_size, rng))
    config = read_json("config.json")
    for key in ("rope_scaling", "num_nextn_predict_layers"):
        del config[key]
    config |= {"hidden_size": HIDDEN, "vocab_size": vocab_size, "num_hidden_layers": 2,
               "q_lora_rank": None, "kv_lora_rank": RANK, "qk_nope_head_dim": NOPE,
               "qk_rope_head_dim": ROPE, "v_head_dim": VALUE, "num_attention_heads": HEADS,
               "num_key_value_heads": HEADS, "intermediate_size": FFN,
               "moe_intermediate_size": MOE, "n_routed_experts": EXPERTS, "n_shared_experts": 1,
               "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1,
               "first_k_dense_replace": 1, "max_position_embeddings": context}
    files = {"config.json": config, "tokenizer.json": tokenizer,
             "tokenizer_config.json": read_json("tokenizer_config.json") | {"chat_template": template},
             "generation_config.json": {"bos_token_id": 0, "eos_token_id": END, "temperature": 0.0}}
    for name, value in files.items():
        with open(os.path.join(out, name), "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False)
    return lengths


def main(arguments):
    if len(arguments) != 3:
        raise SystemExit(__doc__)
    with open(arguments[0], encoding="utf-8") as file:
        scripts = json.load(file)
    with open(arguments[1], encoding="utf-8") as file:
        write_model(scripts, file.read(), arguments[2])


if __name__ == "__main__":
    main(sys.argv[1:])
