"""Writes the hand-made seeds of fuzz/corpus: one small whole file of each kind, and what attacks look like.

Every seed is built from its format's rules alone (struct, json), so that the parsers meet files they did not write.
Inputs that fuzzing found stand beside them under libFuzzer's names (a SHA-1) and are left alone.
"""

import base64
import json
import pathlib
import struct

CORPUS = pathlib.Path(__file__).resolve().parent.parent / "fuzz/corpus"
WIDTH, KV, VOCAB = 8, 4, 8  # as fuzz/src/scratch.rs says
SHAPES = {
    "model.embed_tokens.weight": (VOCAB, WIDTH),
    "model.layers.0.input_layernorm.weight": (WIDTH,),
    "model.layers.0.self_attn.q_proj.weight": (WIDTH, WIDTH),
    "model.layers.0.self_attn.k_proj.weight": (KV, WIDTH),
    "model.layers.0.self_attn.v_proj.weight": (KV, WIDTH),
    "model.layers.0.self_attn.o_proj.weight": (WIDTH, WIDTH),
    "model.layers.0.post_attention_layernorm.weight": (WIDTH,),
    "model.layers.0.mlp.gate_proj.weight": (WIDTH, WIDTH),
    "model.layers.0.mlp.up_proj.weight": (WIDTH, WIDTH),
    "model.layers.0.mlp.down_proj.weight": (WIDTH, WIDTH),
    "model.norm.weight": (WIDTH,),
}


def count(shape):
    values = 1
    for size in shape:
        values *= size
    return values


def safetensors(dtype, value_bytes):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in SHAPES.items():
        end = at + count(shape) * value_bytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(range(256)) * (at // 256) + bytes(at % 256)


def gguf_text(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_value(value):
    """A type's number and the value's bytes."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        return 8, gguf_text(value)
    kind = gguf_value(value[0])[0]
    return 9, struct.pack("<IQ", kind, len(value)) + b"".join(gguf_value(item)[1] for item in value)


def gguf(width, matrix_type, row_bytes, tokenizer):
    kv = width // 2
    metadata = {
        "general.architecture": "llama", "general.alignment": 32, "llama.block_count": 1,
        "llama.context_length": 16, "llama.embedding_length": width, "llama.feed_forward_length": width,
        "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1, "llama.vocab_size": VOCAB,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": width // 2, **tokenizer,
    }
    matrices = {"token_embd": VOCAB, "blk.0.attn_q": width, "blk.0.attn_k": kv, "blk.0.attn_v": kv,
                "blk.0.attn_output": width, "blk.0.ffn_gate": width, "blk.0.ffn_up": width, "blk.0.ffn_down": width}
    norms = ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]
    head, at = b"", 0
    for name, rows in matrices.items():
        head += gguf_text(name + ".weight") + struct.pack("<IQQIQ", 2, width, rows, matrix_type, at)
        at += rows * row_bytes + -(rows * row_bytes) % 32
    for name in norms:
        head += gguf_text(name + ".weight") + struct.pack("<IQIQ", 1, width, 0, at)
        at += width * 4 + -(width * 4) % 32
    file = b"GGUF" + struct.pack("<IQQ", 3, len(matrices) + len(norms), len(metadata))
    for key, value in metadata.items():
        kind, raw = gguf_value(value)
        file += gguf_text(key) + struct.pack("<I", kind) + raw
    file += head
    return file + bytes(-len(file) % 32) + bytes(at)


SPM_TOKENIZER = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581", "H", "i", "Hi"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -0.5],
    "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": True,
}
BPE_TOKENIZER = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe",
    "tokenizer.ggml.tokens": ["H", "i", "\u0120", "t", "Hi", "\u0120t", "<|eot|>", "<|bos|>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 1, 3, 3],
    "tokenizer.ggml.merges": ["H i", "\u0120 t"],
    "tokenizer.ggml.bos_token_id": 7, "tokenizer.ggml.eos_token_id": 6,
    "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
}


def pickled(value):
    """Protocol 2 of the few things a state dict needs; bytes stand for ready-made opcodes."""
    if isinstance(value, bytes):
        return value
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        raw = value.encode()
        return b"X" + struct.pack("<I", len(raw)) + raw
    if isinstance(value, tuple):
        return b"(" + b"".join(map(pickled, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(pickled, value)) + b"e"
    return b"}(" + b"".join(pickled(key) + pickled(item) for key, item in value.items()) + b"u"


def name(module, function):
    return f"c{module}\n{function}\n".encode()


def state_dict():
    storage = pickled(("storage", name("torch", "FloatStorage"), "0", "cpu", 64)) + b"Q"
    items = {}
    for key, shape in SHAPES.items():
        strides = (shape[1], 1) if len(shape) == 2 else (1,)
        empty = name("collections", "OrderedDict") + b")R"
        arguments = pickled((storage, 0, shape, strides, False, empty))
        items[key] = name("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"
    return items


def dump(value):
    return b"\x80\x02" + pickled(value) + b"."


def legacy_torch():
    magic = b"\x80\x02\x8a\x0a" + bytes.fromhex("6cfc9c46f9206aa85019") + b"."
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [magic, dump(1001), dump(machine), dump(state_dict()), dump(["0"])]
    return b"".join(parts) + struct.pack("<Q", 64) + bytes(256)


def varint(value):
    value &= (1 << 64) - 1
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(field, raw):
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def sentencepiece():
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    texts = ["\u2581t", "he", "Hi", "\u2581Hi", "\u2581the", "\u2581", "t", "h", "e", "H", "i", "\u2581\u2581"]
    pieces += [(text, -float(rank), 1) for rank, text in enumerate(texts)]
    file = b""
    for text, score, kind in pieces:
        piece = message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
        file += message(1, piece + varint(3 << 3) + varint(kind))
    trainer = varint(3 << 3) + varint(2) + varint(35 << 3) + varint(1)
    normalizer = message(1, b"identity") + varint(3 << 3) + varint(1) + varint(4 << 3) + varint(0)
    return file + message(2, trainer) + message(3, normalizer)


def tiktoken():
    tokens = [bytes([byte]) for byte in range(256)] + [b"Hi", b" t", b"he"]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def tokenizer_json(byte_level):
    added = [{"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for index, text in enumerate(["<unk>", "<s>", "</s>"])]
    space = "\u0120" if byte_level else "\u2581"
    texts = ["H", "i", space, "t", "h", "e", "Hi", space + "t", "he", space + "the"]
    model = {"type": "BPE", "dropout": None, "unk_token": None if byte_level else "<unk>",
             "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": not byte_level,
             "byte_fallback": not byte_level, "ignore_merges": byte_level,
             "vocab": {text: index for index, text in enumerate(["<unk>", "<s>", "</s>"] + texts)},
             "merges": [["H", "i"], [space, "t"], ["h", "e"], [space + "t", "he"]]}
    pattern = {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    if byte_level:
        normalizer, decoder = None, {**level, "use_regex": True}
        split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
        before = {"type": "Sequence", "pretokenizers": [split, level]}
    else:
        normalizer = {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": space}, {"type": "Replace", "pattern": {"String": " "}, "content": space}]}
        before = None
        decoder = {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": space}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    sequence = [{"Sequence": {"id": which, "type_id": kind}} for which, kind in (("A", 0), ("B", 1))]
    after = {"type": "TemplateProcessing", "single": [start, sequence[0]], "pair": [start, sequence[0], sequence[1]],
             "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    return json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
                       "normalizer": normalizer, "pre_tokenizer": before, "post_processor": after,
                       "decoder": decoder, "model": model}).encode()


def configs():
    base = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128, "hidden_size": 32,
            "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "hidden_act": "silu", "bos_token_id": 1}
    yield "old", {**base, "rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": "float16", "eos_token_id": 2}
    yield "linear", {**base, "rope_scaling": {"type": "linear", "factor": 2.0}, "pretraining_tp": 1}
    yield "llama3", {**base, "eos_token_id": [2, 3], "head_dim": 8, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}, "dtype": "bfloat16"}
    yield "yarn", {**base, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                                            "mscale": 1.0, "mscale_all_dim": 0.5}}
    yield "longrope", {**base, "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4,
                                                "long_factor": [2.0] * 4, "factor": 4.0}}
    yield "dynamic", {**base, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "attention_bias": True}
    yield "head", {**base, "id2label": {"0": "a", "1": "b"}, "problem_type": "regression", "unknown": {"kept": [1]}}
    yield "huge", {**base, "hidden_size": 2**62, "num_attention_heads": 1, "head_dim": 2**61, "vocab_size": 2**63}
    yield "generation", {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "eos_token_id": [1, 2],
                         "max_length": 4096, "early_stopping": "never", "repetition_penalty": 1.1}


TEMPLATES = {
    "turns": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}"
             "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\0Hello",
    "checks": "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
              "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
              "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
              "{% endif %}{{ bos_token ~ m.content.strip().split('x')[0] }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
                  "{% endgeneration %}{% endif %}{% endfor %}",
    "macro": "{% macro show(x, depth=2) %}{{ x | tojson(indent=2) }}{% if depth %}{{ show(x, depth - 1) }}{% endif %}"
             "{% endmacro %}{% set ns = namespace(n=0) %}{{ show(messages) }}{{ strftime_now('%d %b %Y') }}",
    "bomb_loop": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "bomb_macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "bomb_text": "{% set x = 'a' * 1000000000 %}{{ x }}",
    "bomb_double": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
                   "{{ ns.x | length }}",
    "bomb_replace": "{{ ('a' * 9999) | replace('a', 'b' * 99999) | replace('b', 'c' * 99999) | length }}",
    "bomb_nested": "{{ " + "[" * 200 + "]" * 200 + " }}",
    "bomb_str_format": "{{ '{:<999999999}'.format(1) }}",
    "bomb_str_precision": "{{ '{:.999999999f}'.format(1.5) }}",
    "bomb_format": "{{ '%999999999d' | format(1) }}",
    "bomb_indent": "{{ 'a\nb' | indent(999999999) }}",
    "bomb_tojson": "{{ messages | tojson(indent=999999999) }}",
    "bomb_list": "{{ ([0] * 1000000000) | length }}",
    "bomb_range": "{{ range(100000) | list | length }}{{ range(10 ** 15) | list | length }}",
    "bomb_batch": "{{ messages | batch(999999999, 'x') | list | length }}{{ messages | slice(999999999) | list }}",
    "bomb_join": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x.join(ns.x) %}{% endfor %}",
    "bomb_method": "{{ ('a' * 9999).replace('a', 'b' * 9999).replace('b', 'c' * 9999) | length }}",
    "bomb_recursive": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "bomb_capture": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
                    "{% set ns.x = y %}{% endfor %}",
    "bomb_list_double": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
}


def main():
    seeds = {
        "safetensors": {"f32": safetensors("F32", 4), "bf16": safetensors("BF16", 2),
                        "lying_header": struct.pack("<Q", 2**63) + b"{}"},
        "gguf": {"spm_f32": gguf(8, 0, 32, SPM_TOKENIZER), "bpe_q4_0": gguf(32, 2, 18, BPE_TOKENIZER),
                 "f16": gguf(8, 1, 16, {}), "lying_counts": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60)},
        "pickle": {"zipped": dump(state_dict()), "legacy": legacy_torch(),
                   "forbidden": b"\x80\x02" + name("posix", "system") + pickled(("true",)) + b"R.",
                   "memo_bomb": b"\x80\x02]q\x00" + b"(h\x00h\x00h\x00h\x00l" * 40 + b"."},
        "sentencepiece": {"bpe": sentencepiece(), "tiktoken": tiktoken(),
                          "lying_length": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"},
        "tokenizer_json": {"metaspace": tokenizer_json(False), "byte_level": tokenizer_json(True)},
        "config_json": {key: json.dumps(value).encode() for key, value in configs()},
        "chat_template": {key: text.encode() for key, text in TEMPLATES.items()},
    }
    for target, files in seeds.items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for key, raw in files.items():
            (folder / key).write_bytes(raw)
    total = sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file())
    print(f"{sum(map(len, seeds.values()))} seeds written; fuzz/corpus holds {total} bytes")


if __name__ == "__main__":
    main()
