"""Makes the tiny quantised folders of crates/puna/tests/data/quantized (torch 2.15, safetensors 0.7).

    python tools/quantized_goldens.py OUTPUT_FOLDER

Each folder is a LLaMA whose q_proj and down_proj are packed, value by value, as the method's own
library lays them out; expected.safetensors has the same two matrices multiplied out by torch.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = dict(
    model_type="llama", architectures=["LlamaModel"], vocab_size=8, hidden_size=32,
    intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    head_dim=16, max_position_embeddings=32, dtype="float16",
)
SHAPES = {
    "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32), "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32),
    "mlp.down_proj": (32, 64),
}
PACKED = ["self_attn.q_proj", "mlp.down_proj"]
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]
FP4 = [
    0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5,
    0.1666666716337204, 0.25, -0.0, -0.0052083334885537624, -0.6666666865348816, -1.0,
    -0.3333333432674408, -0.5, -0.1666666716337204, -0.25,
]


def int32(value):
    return value - (1 << 32) if value >= 1 << 31 else value


def stream(values, bits):
    """Words of 32 bits that hold values one after the other, the first in the lowest bits."""
    total = sum(int(value) << (bits * i) for i, value in enumerate(values))
    count = -(-len(values) * bits // 32)
    return [int32(total >> (32 * i) & 0xFFFFFFFF) for i in range(count)]


def gptq(shape, bits, size, symmetric, act_order, second):
    rows, cols = shape
    groups = cols // size
    codes = torch.randint(0, 2**bits, shape)
    zeros = torch.full((groups, rows), 2 ** (bits - 1))
    if not symmetric:
        zeros = torch.randint(1, 2**bits, (groups, rows))
    scales = (torch.rand(groups, rows) * 0.1 + 0.01).half()
    g_idx = torch.arange(cols) // size
    if act_order:
        g_idx = g_idx[torch.randperm(cols)]
    stored = zeros if second else zeros - 1
    columns = [stream(codes[row].tolist(), bits) for row in range(rows)]
    tensors = {
        "qweight": torch.tensor(columns, dtype=torch.int32).t().contiguous(),
        "qzeros": torch.tensor([stream(line.tolist(), bits) for line in stored], dtype=torch.int32),
        "scales": scales, "g_idx": g_idx.int(), "bias": torch.zeros(rows).half(),
    }
    wide = scales.float()[g_idx].t() * (codes - zeros[g_idx].t())
    return tensors, wide, wide if not act_order else wide.half().float()


def awq(shape, size):
    rows, cols = shape
    groups = cols // size
    codes = torch.randint(0, 16, shape)
    zeros = torch.randint(0, 16, (groups, rows))
    scales = (torch.rand(groups, rows) * 0.1 + 0.01).half()
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def pack(lines):
        return torch.tensor([
            [int32(sum(int(line[8 * word + order[i]]) << (4 * i) for i in range(8)))
             for word in range(len(line) // 8)]
            for line in lines.tolist()], dtype=torch.int32)

    tensors = {"qweight": pack(codes.t()), "qzeros": pack(zeros), "scales": scales}
    group = torch.arange(cols) // size
    wide = scales.float()[group].t() * (codes - zeros[group].t())
    return tensors, wide, wide


def bnb4(shape, kind, double):
    rows, cols = shape
    table = torch.tensor(NF4 if kind == "nf4" else FP4)
    codes = torch.randint(0, 16, (rows * cols,))
    runs = rows * cols // 64
    packed = (codes[::2] << 4 | codes[1::2]).to(torch.uint8).reshape(-1, 1)
    state = dict(quant_type=kind, blocksize=64, dtype="bfloat16", shape=[rows, cols])
    tensors = {"weight": packed, "weight.quant_map": table}
    if double:
        nested = torch.linspace(-1, 1, 256)
        stored = torch.randint(0, 256, (runs,))
        nested_absmax = torch.rand(-(-runs // 256)) * 0.1
        offset = 0.0437
        absmax = nested[stored] * nested_absmax[torch.arange(runs) // 256] + offset
        state |= dict(nested_blocksize=256, nested_dtype="float32", nested_offset=offset)
        tensors |= {
            "weight.absmax": stored.to(torch.uint8), "weight.nested_absmax": nested_absmax,
            "weight.nested_quant_map": nested,
        }
    else:
        absmax = torch.rand(runs) * 0.1 + 0.01
        tensors["weight.absmax"] = absmax
    text = json.dumps(state).encode()
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    wide = (table[codes].reshape(runs, 64) * absmax[:, None]).reshape(rows, cols)
    return tensors, wide, wide.bfloat16().float()


def bnb8(shape):
    codes = torch.randint(-127, 128, shape, dtype=torch.int8)
    largest = torch.rand(shape[0]) * 2 + 0.1
    wide = codes * largest[:, None] * (1 / 127)
    tensors = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, wide, wide.half().float()


def fp8(shape, rows_only, block=(16, 24)):
    codes = (torch.randn(shape) * 20).to(torch.float8_e4m3fn)
    if rows_only:
        scale = torch.rand(shape[0], 1) * 0.01
        wide = codes.float() * scale
        return {"weight": codes, "weight_scale": scale}, wide, wide.half().float()
    down, across = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    scale = torch.rand(down, across) * 0.01
    spread = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    wide = codes.float() * spread[:shape[0], :shape[1]]
    return {"weight": codes, "weight_scale_inv": scale}, wide, wide.half().float()


def packed(shape, bits, size, symmetric):
    rows, cols = shape
    groups, in_word, half = cols // size, 32 // bits, 2 ** (bits - 1)
    codes = torch.randint(-half, half, shape)
    scales = (torch.rand(rows, groups) * 0.1 + 0.01).bfloat16()
    zeros = torch.zeros(rows, groups, dtype=torch.long)
    words = [[int32(sum((int(value) + half) << (bits * i)
                        for i, value in enumerate(line[at:at + in_word])))
              for at in range(0, cols, in_word)] for line in codes.tolist()]
    tensors = {
        "weight_packed": torch.tensor(words, dtype=torch.int32), "weight_scale": scales,
        "weight_shape": torch.tensor(shape),
    }
    if not symmetric:
        zeros = torch.randint(-half, half, (rows, groups))
        lines = [[int32(sum((int(zeros[at + i][group]) + half) << (bits * i) for i in range(in_word)))
                  for group in range(groups)] for at in range(0, rows, in_word)]
        tensors["weight_zero_point"] = torch.tensor(lines, dtype=torch.int32)
    group = torch.arange(cols) // size
    wide = scales.float()[:, group] * (codes - zeros[:, group])
    return tensors, wide, wide


def signed_bytes(shape):
    codes = torch.randint(-127, 128, shape, dtype=torch.int8)
    scales = (torch.rand(shape[0], 1) * 0.01 + 0.01).bfloat16()
    wide = codes * scales.float()
    return {"weight": codes, "weight_scale": scales}, wide, wide


def small_floats(shape):
    codes = (torch.randn(shape) * 20).to(torch.float8_e4m3fn)
    scales = (torch.rand(shape[0], 1) * 0.01 + 0.01).bfloat16()
    wide = codes.float() * scales.float()
    return {"weight": codes, "weight_scale": scales}, wide, wide.bfloat16().float()


def scheme(**weights):
    return dict(quant_method="compressed-tensors", ignore=["lm_head"], config_groups=dict(
        group_0=dict(targets=["Linear"], weights=weights, input_activations=None)))


def group_scheme(bits, size, symmetric):
    return scheme(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=size)


def gptq_settings(bits, size, **more):
    return dict(quant_method="gptq", bits=bits, group_size=size) | more


METHODS = {
    "gptq_4": (gptq_settings(4, 32), lambda s: gptq(s, 4, 32, True, False, False)),
    "gptq_4_asymmetric": (gptq_settings(4, 32), lambda s: gptq(s, 4, 32, False, False, False)),
    "gptq_3": (gptq_settings(3, 32), lambda s: gptq(s, 3, 32, True, False, False)),
    "gptq_2_v2": (gptq_settings(2, 32, checkpoint_format="gptq_v2"),
                  lambda s: gptq(s, 2, 32, False, False, True)),
    "gptq_8": (gptq_settings(8, 32), lambda s: gptq(s, 8, 32, True, False, False)),
    "gptq_act_order": (gptq_settings(4, 16, desc_act=True),
                       lambda s: gptq(s, 4, 16, False, True, False)),
    "awq": (dict(quant_method="awq", bits=4, group_size=32, version="gemm", zero_point=True),
            lambda s: awq(s, 32)),
    "bnb_nf4": (dict(quant_method="bitsandbytes", load_in_4bit=True), lambda s: bnb4(s, "nf4", False)),
    "bnb_nf4_double": (dict(quant_method="bitsandbytes", load_in_4bit=True),
                       lambda s: bnb4(s, "nf4", True)),
    "bnb_fp4": (dict(quant_method="bitsandbytes", load_in_4bit=True), lambda s: bnb4(s, "fp4", False)),
    "bnb_int8": (dict(quant_method="bitsandbytes", load_in_8bit=True), bnb8),
    "fp8": (dict(quant_method="fp8", weight_block_size=[16, 24]), lambda s: fp8(s, False)),
    "fbgemm_fp8": (dict(quant_method="fbgemm_fp8"), lambda s: fp8(s, True)),
    "pack_4": (group_scheme(4, 32, True), lambda s: packed(s, 4, 32, True)),
    "pack_4_asymmetric": (group_scheme(4, 32, False), lambda s: packed(s, 4, 32, False)),
    "int_8": (scheme(num_bits=8, type="int", symmetric=True, strategy="channel"), signed_bytes),
    "float_8": (scheme(num_bits=8, type="float", symmetric=True, strategy="channel"), small_floats),
}


def main(folder):
    for seed, (name, (settings, make)) in enumerate(METHODS.items()):
        torch.manual_seed(seed)
        target = Path(folder) / name
        target.mkdir(parents=True, exist_ok=True)
        tensors = {
            "embed_tokens.weight": torch.randn(8, 32).half(), "norm.weight": torch.ones(32).half(),
            "layers.0.input_layernorm.weight": torch.ones(32).half(),
            "layers.0.post_attention_layernorm.weight": torch.ones(32).half(),
        }
        expected = {}
        for part, shape in SHAPES.items():
            prefix = f"layers.0.{part}"
            if part not in PACKED:
                tensors[f"{prefix}.weight"] = torch.randn(shape).half()
                continue
            parts, _, values = make(shape)
            tensors |= {f"{prefix}.{key}": value for key, value in parts.items()}
            expected[f"model.{prefix}.weight"] = values.contiguous()
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
        save_file(expected, target / "expected.safetensors")
        config = CONFIG | {"quantization_config": settings}
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        print(target)


if __name__ == "__main__":
    main(sys.argv[1])
