"""Makes the small tokenizers of crates/puna/tests/data/tokenizer and what the real libraries give
for them; with --gguf also a large reference for that file's tokenizer.

    python tools/tokenizer_reference.py
    python tools/tokenizer_reference.py --gguf MODEL.gguf --out DIR   # DIR/tokenizer/gguf_reference.json

Needs `sentencepiece`, `tokenizers` and (for --gguf) `gguf`; the versions used are written down in
the output.
"""

import argparse
import io
import json
import pathlib

import sentencepiece
import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tokenizer_text import CODE, PROSE, mixed

DATA = pathlib.Path(__file__).parent.parent / "crates/puna/tests/data/tokenizer"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ODD = ["", " ", "  ", "\n", "a", " a", "a ", "  a  b  ", "\u2581", "\u2581a \u2581", "<s>", "<sep>", "x<sep>y", "\0", "\ufffd", "🦙", "aaaaaaaaaaaaaaaa", "   \n\n  \tx", "foo bar baz", "foo  bar"]


def cases(seed):
    return ODD + [mixed(120, seed + i) for i in range(14)]


def sentencepiece_model(name, **options):
    """Trains a tiny BPE model and records ids, decoded text and decodings of random ids."""
    out = io.BytesIO()
    settings = dict(model_type="bpe", vocab_size=900, character_coverage=0.98, minloglevel=2, max_sentence_length=100000)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((PROSE[:10] + CODE) * 20 + PROSE), model_writer=out, **(settings | options)
    )
    path = DATA / f"{name}.model"
    path.write_bytes(out.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    size = model.get_piece_size()
    decodes = [[(i * 37 + j * j * 11) % size for j in range(i % 9 + 1)] for i in range(50)]
    return {
        "model": path.name,
        "encode": [{"text": text, "ids": model.encode(text)} for text in cases(100)],
        "decode": [{"ids": ids, "text": model.decode(ids)} for ids in decodes],
    }


def byte_level(name, pre_tokenizer, ignore_merges, template):
    """Trains a tiny byte-level BPE tokenizer and records ids and decoded text."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<|bos|>", "<|eos|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(mixed(60000, 9).split("\n"), trainer)
    if template:
        special = [("<|bos|>", tokenizer.token_to_id("<|bos|>"))]
        tokenizer.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|bos|> $A", pair="<|bos|> $A <|bos|>:1 $B:1", special_tokens=special),
        ])
    tokenizer.add_tokens([tokenizers.AddedToken("<w>", lstrip=True, rstrip=True, normalized=False)])
    path = DATA / f"{name}.json"
    tokenizer.save(str(path), pretty=False)
    texts = cases(300) + ["a<|bos|>b  <w>  c", "x <w>", "<|eos|>"]
    size = tokenizer.get_vocab_size()
    decodes = [[(i * 41 + j * j * 13) % size for j in range(i % 9 + 1)] for i in range(50)]
    return {
        "tokenizer": path.name,
        "encode": [{"text": t, "ids": tokenizer.encode(t).ids} for t in texts],
        "decode": [
            {"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=False), "skip": tokenizer.decode(ids)}
            for ids in decodes
        ],
    }


def gguf_tokenizer(path):
    """The reference library's tokenizer for a byte-level GGUF, and the metadata that it came from."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields[f"tokenizer.ggml.{key}"].contents() if f"tokenizer.ggml.{key}" in fields else None
    keys = ["model", "pre", "tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id", "add_bos_token", "add_space_prefix"]
    meta = {key: get(key) for key in keys}
    vocab = {token: i for i, token in enumerate(meta["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in meta["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=meta["pre"] == "llama-bpe"))
    splits = {
        "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)],
    }
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits[meta["pre"]])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(meta["tokens"], meta["token_type"]) if kind == 3]
    tokenizer.add_special_tokens(special)
    return tokenizer, meta


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf")
    parser.add_argument("--out")
    parser.add_argument("--bytes", type=int, default=1 << 20)
    args = parser.parse_args()
    if args.gguf:
        tokenizer, meta = gguf_tokenizer(args.gguf)
        text = mixed(args.bytes, 42)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        lines = [{"text": t, "ids": tokenizer.encode(t, add_special_tokens=False).ids} for t in ODD + [mixed(80, 900 + i) for i in range(25)] + PROSE]
        out = pathlib.Path(args.out) / "tokenizer"
        out.mkdir(parents=True, exist_ok=True)
        reference = {"tokenizers": tokenizers.__version__, "metadata": meta, "text": text, "ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)}
        (out / "gguf_reference.json").write_text(json.dumps(reference, ensure_ascii=False))
        (out / "gguf_lines.json").write_text(json.dumps(lines, ensure_ascii=False, separators=(",", ":")))
        return
    DATA.mkdir(parents=True, exist_ok=True)
    plain = dict(normalization_rule_name="identity", add_dummy_prefix=True, split_digits=True)
    expected = {
        "versions": {"sentencepiece": sentencepiece.__version__, "tokenizers": tokenizers.__version__},
        "sentencepiece": [
            sentencepiece_model("llama_like", byte_fallback=True, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, **plain),
            sentencepiece_model("folds_spaces", byte_fallback=False, remove_extra_whitespaces=True, user_defined_symbols=["<sep>", "foo bar"], **plain),
            sentencepiece_model("suffix", byte_fallback=True, remove_extra_whitespaces=True, treat_whitespace_as_suffix=True, **plain),
        ],
        "byte_level": [
            byte_level("digits", pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]), False, False),
            byte_level("llama3_like", pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), True, True),
            byte_level("prefix_space", pre_tokenizers.ByteLevel(add_prefix_space=True), False, False),
        ],
    }
    (DATA / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main()
