#!/usr/bin/env python3
"""Writes a GGUF file of a model directory as llama.cpp's converter lays it out: names, merged experts,
permuted rows of llama, kv_b in either form, metadata. Made with gguf 0.19.0, numpy 2.4.6.

  python make_gguf.py MODEL_DIR OUT.gguf --type Q8_0 [--joined] [--dequantized DIR]

--type is that of all matrices but router and embedding where a row is whole blocks of it (else F16);
norms, router, embedding and bias stay as they are (F32 or BF16). Only types that the package can
write: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1. --dequantized also writes the safetensors model
of the same values in F32. Tests read neither; docs/gguf.md says what was compared by hand.
"""
import argparse
import json
import os
import re
import shutil
import struct

import gguf
import numpy as np

NAMES = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_layernorm": "attn_q_a_norm", "self_attn.q_b_proj": "attn_q_b",
         "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa", "self_attn.kv_a_layernorm": "attn_kv_a_norm",
         "self_attn.kv_b_proj": "attn_kv_b", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp", "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
         "mlp.shared_experts.up_proj": "ffn_up_shexp", "mlp.shared_experts.down_proj": "ffn_down_shexp"}
GLOBALS = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
           "lm_head.weight": "output.weight"}
KINDS = gguf.GGMLQuantizationType


def load(model):
    tensors = {}
    for name in sorted(os.listdir(model)):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(model, name), "rb") as file:
            data = file.read()
        size = struct.unpack("<Q", data[:8])[0]
        for tensor, info in json.loads(data[8:8 + size]).items():
            if tensor == "__metadata__":
                continue
            begin, end = (8 + size + offset for offset in info["data_offsets"])
            raw = np.frombuffer(data[begin:end], dtype={"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[info["dtype"]])
            values = (raw.astype("<u4") << 16).view("<f4") if info["dtype"] == "BF16" else raw.astype("<f4")
            tensors[tensor] = (info["dtype"], values.reshape(info["shape"]))
    return tensors


def save(model, out, tensors):
    os.makedirs(out, exist_ok=True)
    for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]:
        if os.path.exists(os.path.join(model, name)):
            shutil.copy(os.path.join(model, name), out)
    header, at = {}, 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.size * 4]}
        at += values.size * 4
    text = json.dumps(header).encode()
    with open(os.path.join(out, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values, dtype="<f4").tobytes())


def add_config(writer, c, joined):
    mla = "kv_lora_rank" in c
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_rope_freq_base(c.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    writer.add_vocab_size(c["vocab_size"])
    scaling = c.get("rope_scaling") or c.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("yarn", "linear"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if not mla:
        heads = c["num_attention_heads"]
        writer.add_head_count_kv(c.get("num_key_value_heads", heads))
        dim = c.get("head_dim") or c["hidden_size"] // heads
        writer.add_rope_dimension_count(dim)
        if dim != c["hidden_size"] // heads:
            writer.add_key_length(dim)
            writer.add_value_length(dim)
        return kind
    if "mscale_all_dim" in scaling:
        writer.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])
    nope, rope, v, rank = (c[k] for k in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"))
    writer.add_kv_lora_rank(rank)
    if c.get("q_lora_rank"):
        writer.add_q_lora_rank(c["q_lora_rank"])
    if joined:
        writer.add_head_count_kv(c["num_attention_heads"])
        writer.add_key_length(nope + rope)
        writer.add_value_length(v)
    else:
        writer.add_head_count_kv(1)
        writer.add_key_length(rank + rope)
        writer.add_value_length(rank)
        writer.add_key_length_mla(nope + rope)
        writer.add_value_length_mla(v)
    writer.add_rope_dimension_count(rope)
    writer.add_leading_dense_block_count(c["first_k_dense_replace"])
    writer.add_expert_feed_forward_length(c["moe_intermediate_size"])
    writer.add_expert_count(c["n_routed_experts"])
    writer.add_expert_used_count(c["num_experts_per_tok"])
    writer.add_expert_shared_count(c["n_shared_experts"])
    writer.add_expert_weights_scale(c["routed_scaling_factor"])
    writer.add_expert_weights_norm(c["norm_topk_prob"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType[c["scoring_func"].upper()])
    if c["n_group"] > 1:
        writer.add_expert_group_count(c["n_group"])
        writer.add_expert_group_used_count(c["topk_group"])
    return kind


def add_tokenizer(writer, model, c):
    path = os.path.join(model, "tokenizer.json")
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        t = json.load(file)
    with open(os.path.join(model, "tokenizer_config.json"), encoding="utf-8") as file:
        config = json.load(file)
    by_id = {i: (text, gguf.TokenType.NORMAL) for text, i in t["model"]["vocab"].items()}
    for token in t["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        by_id[token["id"]] = (token["content"], kind)
    tokens = [by_id.get(i, (f"[PAD{i}]", gguf.TokenType.UNUSED)) for i in range(c["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-v3")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]])
    writer.add_bos_token_id(c["bos_token_id"])
    writer.add_eos_token_id(c["eos_token_id"])
    writer.add_add_bos_token(config["add_bos_token"])
    if "chat_template" in config:
        writer.add_chat_template(config["chat_template"])


def permute(values, heads):
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


class Output:
    def __init__(self, writer, kind):
        self.writer, self.kind = writer, kind

    def add(self, name, dtype, values, matrix):
        """The values that a reader gets."""
        values = np.ascontiguousarray(values, dtype="<f4")
        kind = KINDS[dtype]
        if matrix:
            whole = values.shape[-1] % gguf.GGML_QUANT_SIZES[self.kind][0] == 0
            kind = self.kind if whole else KINDS.F16
        raw = gguf.quants.quantize(values, kind)
        self.writer.add_tensor(name, raw, raw_dtype=kind)
        return gguf.quants.dequantize(raw, kind).reshape(values.shape)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("out")
    parser.add_argument("--type", default="F32")
    parser.add_argument("--joined", action="store_true")
    parser.add_argument("--dequantized")
    args = parser.parse_args()
    with open(os.path.join(args.model, "config.json"), encoding="utf-8") as file:
        c = json.load(file)
    tensors = load(args.model)
    arch = c["model_type"] if c["model_type"] in ("qwen2", "llama") else "deepseek2"
    writer = gguf.GGUFWriter(args.out, arch)
    kind = add_config(writer, c, args.joined)
    add_tokenizer(writer, args.model, c)
    output, back, heads = Output(writer, KINDS[args.type]), {}, c["num_attention_heads"]
    for name, (dtype, values) in tensors.items():
        layer = re.match(r"model\.layers\.(\d+)\.(.*)", name)
        if layer and int(layer[1]) >= c["num_hidden_layers"]:
            continue  # the MTP layer
        if name in GLOBALS:
            back[name] = output.add(GLOBALS[name], dtype, values, name == "lm_head.weight")
            continue
        block, rest = f"blk.{layer[1]}.", layer[2]
        if rest.startswith("mlp.experts."):
            if not rest.startswith("mlp.experts.0."):
                continue
            part = rest.split(".")[3]
            names = [name.replace("experts.0.", f"experts.{e}.") for e in range(c["n_routed_experts"])]
            stack = output.add(f"{block}ffn_{part[:-5]}_exps.weight", dtype, np.stack([tensors[n][1] for n in names]), True)
            back.update(zip(names, stack))
        elif rest == "mlp.gate.e_score_correction_bias":
            back[name] = output.add(block + "exp_probs_b.bias", dtype, values, False)
        elif rest == "self_attn.kv_b_proj.weight" and not args.joined:
            nope, v = c["qk_nope_head_dim"], c["v_head_dim"]
            both = values.reshape(heads, nope + v, -1)
            k = output.add(block + "attn_k_b.weight", dtype, both[:, :nope].transpose(0, 2, 1), True)
            v = output.add(block + "attn_v_b.weight", dtype, both[:, nope:], True)
            back[name] = np.concatenate([k.transpose(0, 2, 1), v], axis=1).reshape(values.shape)
        else:
            stem, end = rest.rsplit(".", 1)
            count = {"self_attn.q_proj": heads, "self_attn.k_proj": c.get("num_key_value_heads")}.get(stem)
            turned = permute(values, count) if arch == "llama" and count else values
            matrix = values.ndim == 2 and rest != "mlp.gate.weight"
            got = output.add(f"{block}{NAMES[stem]}.{end}", dtype, turned, matrix)
            if arch == "llama" and count:
                got = got.reshape(count, -1, 2, *got.shape[1:]).swapaxes(1, 2).reshape(got.shape)
            back[name] = got
    if kind == "llama3":
        s, dim = c["rope_scaling"], c.get("head_dim") or c["hidden_size"] // heads
        turns = s["original_max_position_embeddings"] * c["rope_theta"] ** (-np.arange(0, dim, 2) / dim) / 2 / np.pi
        kept = np.clip((turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"]), 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / ((1 - kept) / s["factor"] + kept)).astype("<f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if args.dequantized:
        save(args.model, args.dequantized, back)


if __name__ == "__main__":
    main()
