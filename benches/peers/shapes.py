"""The shapes that random weights are written in: tensors with their rows, columns and formats. Pure arithmetic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int = 32000
    max_position_embeddings: int = 4096

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_heads


@dataclass(frozen=True)
class Tensor:
    """`columns` is the length of a row, which a quantised format cuts into blocks; a norm has one row."""

    name: str
    rows: int
    columns: int
    format: str

    @property
    def n_bytes(self) -> int:
        block, size = BLOCKS[self.format]
        return self.rows * self.columns // block * size


SHAPES = {
    "1b": Shape(2048, 5632, 22, 32, 4),
    "7b": Shape(4096, 11008, 32, 32, 32),
}
# Format -> (weights of a block, bytes of a block), as the GGUF specification has them.
BLOCKS = {"F32": (1, 4), "BF16": (1, 2), "Q4_0": (32, 18), "Q8_0": (32, 34), "Q4_K": (256, 144), "Q6_K": (256, 210)}
FORMATS = ("Q4_0", "Q8_0", "Q4_K", "Q4_K_M", "Q6_K", "BF16")


def widened(layer: int, n_layers: int) -> bool:
    """Whether Q4_K_M keeps this layer's v_proj and down_proj in Q6_K: the outer eighths and each third between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def tensors(shape: Shape, name: str) -> list[Tensor]:
    """Every tensor of a file of format `name`, in GGUF's names. Files of four bits keep lm_head in Q6_K, as usual."""
    if name not in FORMATS:
        raise ValueError(f"no format {name}; there are {', '.join(FORMATS)}")
    base = name.removesuffix("_M")
    head = "Q6_K" if base in ("Q4_0", "Q4_K") else base
    width = shape.hidden_size
    found = [
        Tensor("token_embd.weight", shape.vocab_size, width, base),
        Tensor("output_norm.weight", 1, width, "F32"),
        Tensor("output.weight", shape.vocab_size, width, head),
    ]
    for layer in range(shape.n_layers):
        wide = "Q6_K" if name == "Q4_K_M" and widened(layer, shape.n_layers) else base
        found += block_tensors(shape, layer, base, wide)
    return found


def block_tensors(shape: Shape, layer: int, base: str, wide: str) -> list[Tensor]:
    width, inner, kv_rows = shape.hidden_size, shape.intermediate_size, shape.head_dim * shape.n_kv_heads
    rows = [
        ("attn_norm", 1, width, "F32"), ("attn_q", width, width, base), ("attn_k", kv_rows, width, base),
        ("attn_v", kv_rows, width, wide), ("attn_output", width, width, base), ("ffn_norm", 1, width, "F32"),
        ("ffn_gate", inner, width, base), ("ffn_up", inner, width, base), ("ffn_down", width, inner, wide),
    ]
    return [Tensor(f"blk.{layer}.{name}.weight", *rest) for name, *rest in rows]


def total_bytes(shape: Shape, name: str) -> int:
    return sum(tensor.n_bytes for tensor in tensors(shape, name))


def byte_letters() -> list[str]:
    """The letter that byte-level BPE writes each byte as: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def vocabulary(size: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types and merges of a byte-level BPE vocabulary that means nothing and that every loader accepts.

    Three control tokens, the 256 bytes, then pairs of bytes, each with its merge. SentencePiece would be what these
    shapes come with, but OpenVINO reads no such vocabulary from a GGUF file.
    """
    letters = byte_letters()
    tokens = ["<unk>", "<s>", "</s>", *letters]
    pairs = [(first, second) for first in letters for second in letters][: size - len(tokens)]
    tokens += [first + second for first, second in pairs]
    return tokens, [3] * 3 + [1] * (len(tokens) - 3), [f"{first} {second}" for first, second in pairs]
