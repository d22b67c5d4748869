"""Writes the weights of a LLaMA's GGUF file as a folder that Transformers reads: config.json and bf16 safetensors.

Usage: write_folder.py GGUF OUT. Rows of q and k go back from GGUF's interleaved order to the half-split order.
Needs numpy and gguf.
"""

import json
import os
import pathlib
import sys
from typing import BinaryIO

import gguf
import numpy as np
from gguf import GGUFReader

from write_gguf import bf16_bytes

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def folder_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    match name.split("."):
        case ["blk", layer, part, "weight"]:
            return f"model.layers.{layer}.{NAMES[part]}.weight"
        case [part, "weight"]:
            return f"{NAMES[part]}.weight"
    raise ValueError(f"a LLaMA has no tensor {name}")


def config_of(reader: GGUFReader) -> dict:
    def value(key: str):
        return reader.fields[key].contents()

    n_heads, width = value("llama.attention.head_count"), value("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "head_dim": width // n_heads,
        "vocab_size": value("llama.vocab_size"),
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": float(value("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(value("llama.rope.freq_base")),
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
    }


def half_split(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of each head: pairs (2i, 2i + 1) -> (i, i + d/2)."""
    rows, columns = weight.shape
    pairs = weight.reshape(n_heads, rows // n_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def header_of(reader: GGUFReader) -> bytes:
    """Length and JSON table of a safetensors file; GGUF tells shapes fastest axis first."""
    table, at = {}, 0
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        size = 2 * int(np.prod(shape))
        table[folder_name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}} | table).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_weights(reader: GGUFReader, config: dict, file: BinaryIO) -> None:
    file.write(header_of(reader))
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for tensor in reader.tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weight = half_split(weight, heads[part])
        bf16_bytes(weight).tofile(file)


def main() -> None:
    source, out = sys.argv[1], pathlib.Path(sys.argv[2])
    reader = GGUFReader(source)
    config = config_of(reader)
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with open(partial / "model.safetensors", "wb") as file:
        write_weights(reader, config, file)
    (partial / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, out)


if __name__ == "__main__":
    main()
