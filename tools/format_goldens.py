#!/usr/bin/env python3
"""Writes what the weight formats must give: crates/kernels/tests/data/formats/.

    pip install numpy gguf
    python tools/format_goldens.py [--ggml libggml-base.so]

<name>.bin holds blocks, then their values as f32; the first half of the blocks has scales as a
model has them, the rest is random to the last bit. digests.txt holds, for each format, a number
of random blocks and the digest of their values; the test makes the same blocks from the name.

The values are those of gguf.quants.dequantize (gguf 0.19). It does not know q8_k: its values
come from the formula written out below. With --ggml everything is compared with
that compiled ggml as well (any wheel that carries a libggml-base.so will do), and the script
fails on the first format that differs.
"""

import argparse
import ctypes
import pathlib
import struct

import gguf
import numpy as np

FOLDER = pathlib.Path(__file__).parent.parent / "crates/kernels/tests/data/formats"
MASK = (1 << 64) - 1

# Format -> where its binary16 scales lie in a block.
SCALES = {
    "f32": [], "f16": [], "bf16": [],
    "q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0],
    "q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208], "q8_k": [],
    "iq1_s": [0], "iq1_m": [], "iq2_xxs": [0], "iq2_xs": [0], "iq2_s": [0],
    "iq3_xxs": [0], "iq3_s": [0], "iq4_nl": [0], "iq4_xs": [0],
    "tq1_0": [52], "tq2_0": [64], "mxfp4": [],
}  # fmt: skip


def ggml_type(name):
    return gguf.GGMLQuantizationType[name.upper()]


def sizes(name):
    """Weights per block, bytes per block."""
    return gguf.GGML_QUANT_SIZES[ggml_type(name)]


def fnv(words):
    """FNV-1a, taking whole words in place of bytes."""
    digest = 0xCBF29CE484222325
    for word in words:
        digest = ((digest ^ word) * 0x100000001B3) & MASK
    return digest


def random_bytes(name, n_bytes):
    """splitmix64 from the digest of the name, little-endian."""
    steps = np.arange(1, n_bytes // 8 + 2, dtype=np.uint64)
    z = np.uint64(fnv(name.encode())) + steps * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).astype("<u8").view(np.uint8)[:n_bytes].copy()


def with_usual_scales(name, blocks):
    """Scales of 2^-9 to 2^-5 of either sign, in place."""
    rng = np.random.default_rng(len(name))
    for block in blocks:
        draw = lambda: np.float16(rng.choice([-1, 1]) * 2.0 ** rng.uniform(-9, -5))
        for at in SCALES[name]:
            block[at : at + 2] = np.frombuffer(draw().tobytes(), np.uint8)
        if name == "iq1_m":
            bits = int(draw().view(np.uint16))
            for i in range(4):
                block[49 + 2 * i] = (block[49 + 2 * i] & 15) | (bits >> (4 * i) & 15) << 4
        if name == "q8_k":
            block[:4] = np.frombuffer(np.float32(draw()).tobytes(), np.uint8)
        if name == "mxfp4":
            block[0] = rng.integers(116, 130)


def q8_k_values(blocks):
    """w[i] = d * q[i]: an f32, 256 signed bytes, 16 sums that do not matter here."""
    out = []
    for block in blocks:
        (d,) = struct.unpack_from("<f", block.tobytes(), 0)
        qs = struct.unpack_from("<256b", block.tobytes(), 4)
        out += [np.float32(d) * np.float32(q) for q in qs]
    return np.array(out, np.float32)


def values(name, blocks):
    with np.errstate(all="ignore"):
        if name == "q8_k":
            return q8_k_values(blocks)
        return gguf.quants.dequantize(blocks, ggml_type(name)).astype(np.float32).reshape(-1)


def digest(floats):
    """Of the bits, every NaN being the same one."""
    bits = np.where(np.isnan(floats), np.uint32(0x7FC00000), floats.view(np.uint32))
    return fnv(bits.tolist())


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


class Ggml:
    """A compiled ggml. It is C: it reads and writes where it is told."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.ggml_get_type_traits.restype = ctypes.POINTER(TypeTraits)
        initialise = getattr(self.library, "ggml_init", None)
        if initialise is not None:
            # Older versions fill their table of binary16 on the first context.
            class Params(ctypes.Structure):
                _fields_ = [
                    ("size", ctypes.c_size_t),
                    ("buffer", ctypes.c_void_p),
                    ("no_alloc", ctypes.c_bool),
                ]

            initialise.argtypes, initialise.restype = [Params], ctypes.c_void_p
            initialise(Params(1024, None, True))

    def values(self, name, blocks):
        length, n_bytes = sizes(name)
        traits = self.library.ggml_get_type_traits(int(ggml_type(name))).contents
        assert (traits.blck_size, traits.type_size) == (length, n_bytes), name
        if name == "f32":
            return None
        blocks = np.ascontiguousarray(blocks)
        out = np.empty(len(blocks) * length, np.float32)
        if traits.to_float:
            traits.to_float(blocks.ctypes.data, out.ctypes.data, out.size)
        else:
            assert name == "q8_k", name
            row = self.library.dequantize_row_q8_K
            row(pointer(blocks), pointer(out), ctypes.c_int64(out.size))
        return out

def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ggml", help="a compiled libggml-base.so to compare with")
    ggml = (path := parser.parse_args().ggml) and Ggml(path)
    FOLDER.mkdir(parents=True, exist_ok=True)

    lines = []
    for name in SCALES:
        length, n_bytes = sizes(name)
        n_blocks = {256: 4, 32: 16, 1: 128}[length]
        blocks = random_bytes(name + " usual", n_blocks * n_bytes).reshape(-1, n_bytes)
        with_usual_scales(name, blocks[: n_blocks // 2])
        floats = values(name, blocks)
        (FOLDER / f"{name}.bin").write_bytes(blocks.tobytes() + floats.astype("<f4").tobytes())

        many = random_bytes(name, 1024 * n_bytes).reshape(-1, n_bytes)
        lines.append(f"{name} 1024 {digest(values(name, many)):016x}\n")
        compared = [ggml.values(name, b) for b in (blocks, many)] if ggml else [None]
        if compared[0] is not None:
            assert digest(compared[0]) == digest(floats), name
            assert digest(compared[1]) == digest(values(name, many)), name
            print(f"{name}: these values are ggml's")
    (FOLDER / "digests.txt").write_text("".join(lines))


if __name__ == "__main__":
    main()
