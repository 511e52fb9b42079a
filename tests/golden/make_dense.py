#!/usr/bin/env python3
"""Small random-weight Qwen2 and Llama checkpoints and what transformers computes with them in FP32.

usage: make_dense.py OUT [NAME...]
Writes OUT/NAME/config.json, model.safetensors and golden/ (index.json, ids, hidden states after each
layer, logits), in the layout of tests/golden/README.md. The committed ones were made with the
versions that their index.json names (torch on the CPU, eager attention). The weights are rounded to
the checkpoint's dtype first; all arithmetic is FP32.
"""
import argparse
import json
import os
import platform

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
         "rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": 4096,
         "max_window_layers": 21, "bos_token_id": 0, "eos_token_id": 1}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
         "rms_norm_eps": 1e-5, "attention_bias": False, "mlp_bias": False, "bos_token_id": 0,
         "eos_token_id": [1, 2]}

# Published files are written by several generations of transformers: rope_scaling with `type` or
# `rope_type`, or rope_parameters; head_dim or not.
MODELS = {
    # Groups of 3 heads, bias, tied embeddings, no scaling.
    "rand-qwen2": dict(
        QWEN2, hidden_size=96, intermediate_size=224, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, vocab_size=331, max_position_embeddings=512, rope_theta=1000000.0,
        tie_word_embeddings=True, torch_dtype="bfloat16", tokens=150, seed=1),
    # Groups of 4, llama3 scaling over a short original context, so that a sequence goes far beyond.
    "rand-llama3": dict(
        LLAMA, hidden_size=128, intermediate_size=272, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, vocab_size=320, max_position_embeddings=4096, rope_theta=500000.0,
        rope_scaling={"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                      "original_max_position_embeddings": 256, "rope_type": "llama3"},
        tie_word_embeddings=False, torch_dtype="bfloat16", tokens=2500, seed=2,
        positions=[0, 1, 2, 63, 64, 65, 127, 128, 255, 256, 257, 700, 1023, 1500, 2047, 2048, 2300,
                   2496, 2497, 2498, 2499]),
    # One head of keys and values for all, a head_dim of its own, linear scaling, FP16.
    "rand-llama-linear": dict(
        LLAMA, hidden_size=80, intermediate_size=192, num_hidden_layers=4, num_attention_heads=5,
        num_key_value_heads=1, head_dim=24, vocab_size=322, max_position_embeddings=1024,
        rope_parameters={"rope_theta": 10000.0, "factor": 4.0, "rope_type": "linear"},
        tie_word_embeddings=False, dtype="float16", tokens=100, seed=3),
    # YaRN as Qwen's own files have it, no grouping.
    "rand-qwen2-yarn": dict(
        QWEN2, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=300, max_position_embeddings=512, rope_theta=10000.0,
        rope_scaling={"factor": 4.0, "original_max_position_embeddings": 128, "type": "yarn"},
        tie_word_embeddings=False, torch_dtype="bfloat16", tokens=200, seed=4),
}


def rounded_state(model, dtype, generator, tied):
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("norm.weight"):
            values = 0.5 + torch.rand(tensor.shape, generator=generator)
        elif name.endswith("bias"):
            values = torch.rand(tensor.shape, generator=generator) - 0.5
        else:
            # A tied head would otherwise give logits of tens.
            deviation = (0.3 if tied else 1.0) if "embed" in name else tensor.shape[1] ** -0.5
            # Larger queries: attention that prefers some positions shows what a position is.
            deviation *= 2.0 if "q_proj" in name else 1.0
            values = deviation * torch.randn(tensor.shape, generator=generator)
        state[name] = values.to(dtype)
    return state


def make(name, spec, out):
    spec = dict(spec)
    tokens, seed = spec.pop("tokens"), spec.pop("seed")
    positions = spec.pop("positions", None)
    folder = os.path.join(out, name)
    os.makedirs(os.path.join(folder, "golden"), exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(spec, file, indent=2)
        file.write("\n")
    config = transformers.AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    dtype = getattr(torch, spec.get("torch_dtype") or spec["dtype"])
    generator = torch.Generator().manual_seed(seed)
    state = rounded_state(model, dtype, generator, spec["tie_word_embeddings"])
    if spec["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict({k: v.float() for k, v in state.items()})
    model.eval()
    if spec["tie_word_embeddings"]:
        del state["lm_head.weight"]
    save_file(state, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})

    ids = torch.randint(3, spec["vocab_size"], (1, tokens), generator=generator)
    hidden = []
    hooks = [layer.register_forward_hook(
        lambda _m, _i, o: hidden.append((o[0] if isinstance(o, tuple) else o)[0]))
        for layer in model.model.layers]
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    hidden = torch.stack([h.reshape(tokens, -1) for h in hidden])
    files = {}

    def write(key, array, dtype_name):
        file = f"{key}.{dtype_name}.bin"
        array.tofile(os.path.join(folder, "golden", file))
        files[key] = {"file": file, "dtype": dtype_name, "shape": list(array.shape)}

    if positions is not None:
        logits, hidden = logits[positions], hidden[:, positions]
        write("positions", np.array(positions, dtype=np.int32), "i32")
    write("ids", ids[0].numpy().astype(np.uint16), "u16")
    write("hidden", hidden.numpy().astype(np.float32), "f32")
    write("logits", logits.numpy().astype(np.float32), "f32")
    rope = model.model.rotary_emb
    write("inv_freq", rope.inv_freq.numpy().astype(np.float32), "f32")
    index = {"model": name, "made_by": "tests/golden/make_dense.py", "seed": seed,
             "python": platform.python_version(), "torch": torch.__version__,
             "transformers": transformers.__version__, "rope_magnitude": rope.attention_scaling,
             "logits_rms": float(logits.square().mean().sqrt()), "files": files}
    with open(os.path.join(folder, "golden", "index.json"), "w") as file:
        json.dump(index, file, indent=1)
        file.write("\n")
    print(name, "logits rms", index["logits_rms"], "most", float(logits.abs().max()))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names or MODELS:
        make(name, MODELS[name], arguments.out)


if __name__ == "__main__":
    main()
