"""Writes a GGUF file of a LLaMA's shape with random weights, for measurements of speed.

Usage: write_gguf.py SHAPE FORMAT OUT. Every weight matrix has the deviation 1/sqrt(columns), so that activations keep their
size; the quantised bits are random too, since some processors multiply zeros faster. Needs numpy and gguf.
"""

import math
import os
import sys
from collections.abc import Iterator

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from shapes import BLOCKS, SHAPES, Shape, Tensor, tensors, vocabulary

# Format -> where the f16 scales of a block lie, each with its size beside the first. In Q4_K a weight is
# d * scale * quant - dmin * min: with dmin = 7.5 * d, half the largest quant, its mean is nought.
SCALES = {"Q4_0": {0: 1.0}, "Q8_0": {0: 1.0}, "Q4_K": {0: 1.0, 2: 7.5}, "Q6_K": {208: 1.0}}
CHUNK_WEIGHTS = 1 << 24


def random_blocks(rng: np.random.Generator, n_blocks: int, name: str, scale: float) -> np.ndarray:
    """(n_blocks, bytes of a block); the scales vary by half around `scale`."""
    blocks = rng.integers(0, 256, size=(n_blocks, BLOCKS[name][1]), dtype=np.uint8)
    spread = rng.uniform(0.5, 1.5, n_blocks)
    for at, factor in SCALES[name].items():
        halves = (spread * (scale * factor)).astype("<f2")
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(n_blocks, 2)
    return blocks


def unit_deviation(name: str) -> float:
    """Root mean square of the weights that random bits give under a scale of about 1."""
    blocks = random_blocks(np.random.default_rng(0), 4096, name, 1.0)
    weights = gguf.dequantize(blocks, GGMLQuantizationType[name])
    return float(np.sqrt(np.mean(np.square(weights, dtype=np.float64))))


def bf16_bytes(weights: np.ndarray) -> np.ndarray:
    """f32 -> the bytes of bf16, rounded to nearest even."""
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
    return rounded.astype("<u2").view(np.uint8)


def tensor_chunks(tensor: Tensor, rng: np.random.Generator, units: dict[str, float]) -> Iterator[np.ndarray]:
    """The tensor's bytes, some rows at a time: the f32 weights between would take twice a bf16 tensor's memory."""
    if tensor.format == "F32":
        yield np.ones(tensor.columns, np.float32)
        return
    deviation = 1 / math.sqrt(tensor.columns)
    step = max(1, CHUNK_WEIGHTS // tensor.columns)
    for row in range(0, tensor.rows, step):
        weights = min(step, tensor.rows - row) * tensor.columns
        if tensor.format == "BF16":
            yield bf16_bytes(rng.standard_normal(weights, np.float32) * np.float32(deviation))
        else:
            n_blocks = weights // BLOCKS[tensor.format][0]
            yield random_blocks(rng, n_blocks, tensor.format, deviation / units[tensor.format]).reshape(-1)


def describe(writer: GGUFWriter, shape: Shape, name: str) -> None:
    """The keys that loaders ask for."""
    writer.add_name(f"random weights, {name}")
    writer.add_file_type(LlamaFileType["MOSTLY_Q4_K_S" if name == "Q4_K" else f"MOSTLY_{name}"])
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_block_count(shape.n_layers)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab_size)
    tokens, types, merges = vocabulary(shape.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)


def announce(writer: GGUFWriter, tensor: Tensor) -> None:
    """The tensor's line in the file's table; a norm is a vector."""
    block, size = BLOCKS[tensor.format]
    if tensor.format == "F32":
        writer.add_tensor_info(tensor.name, (tensor.columns,), np.dtype(np.float32), tensor.n_bytes)
        return
    row_bytes = tensor.columns // block * size
    kind = GGMLQuantizationType[tensor.format]
    writer.add_tensor_info(tensor.name, (tensor.rows, row_bytes), np.dtype(np.uint8), tensor.n_bytes, raw_dtype=kind)


def write(shape: Shape, name: str, out: str) -> None:
    found = tensors(shape, name)
    units = {tensor.format: unit_deviation(tensor.format) for tensor in found if tensor.format in SCALES}
    partial = f"{out}.partial"
    writer = GGUFWriter(partial, "llama")
    describe(writer, shape, name)
    for tensor in found:
        announce(writer, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(1)
    for tensor in found:
        writer.write_tensor_data(np.concatenate(list(tensor_chunks(tensor, rng, units))))
    writer.close()
    os.replace(partial, out)


def main() -> None:
    shape, name, out = sys.argv[1:]
    write(SHAPES[shape], name, out)


if __name__ == "__main__":
    main()
