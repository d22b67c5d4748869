"""Writes crates/puna/tests/data/sampling_goldens.json: what Transformers' processors make of random logits.

Run from the repository root with torch and transformers 5.x:  python tools/sampling_goldens.py
A case names its processors by generate()'s own arguments; generate() itself puts them in order. null is -inf.
"""

import json
import pathlib

import numpy
import torch
import transformers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

VOCAB_SIZE = 48
EOS = [2, 7]
INF = float("inf")


def rows():
    """Ordinary logits, sharp ones, ties (as bf16 models have), dropped ids, all equal."""
    torch.manual_seed(20)
    plain = torch.randn(VOCAB_SIZE) * 2
    sharp = torch.randn(VOCAB_SIZE) * 9
    ties = (torch.randn(VOCAB_SIZE) * 2).round()
    dropped = torch.randn(VOCAB_SIZE) * 3
    dropped[::3] = -INF
    equal = torch.full((VOCAB_SIZE,), 1.25)
    return {"plain": plain, "sharp": sharp, "ties": ties, "dropped": dropped, "equal": equal}


PROMPT = [1, 5, 9, 5, 33, 5, 9]
COMPLETION = [40, 5, 9, 5, 33, 40, 5]

SINGLE = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 99},
    {"min_new_tokens": 7},
    {"min_new_tokens": 8},
    {"temperature": 0.3},
    {"temperature": 1.9},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 400},
    {"top_p": 0.0},
    {"top_p": 0.35},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.02},
    {"min_p": 0.4},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.9},
]
CHAINS = [
    {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.4, "top_k": 30, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.8},
    {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 9, "temperature": 0.8, "top_p": 0.7},
    {"repetition_penalty": 1.2, "min_new_tokens": 8, "temperature": 1.7, "top_k": 12, "typical_p": 0.5},
]


def process(model, settings, logits):
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(do_sample=True, eos_token_id=EOS, **{**off, **settings})
    model._prepare_special_tokens(config, kwargs_has_attention_mask=True)
    processors = model._get_logits_processor(config, input_ids_seq_length=len(PROMPT))
    ids = torch.tensor([PROMPT + COMPLETION])
    return processors(ids, logits.clone()[None])[0]


def numbers(scores):
    """The shortest text that reads back as the same f32."""
    return [None if s == -INF else float(str(numpy.float32(s))) for s in scores.tolist()]


def main():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, **sizes))
    logits = rows()
    cases = []
    for settings in SINGLE + CHAINS:
        names = list(logits) if len(settings) > 1 or set(settings) & {"top_k", "top_p", "min_p", "typical_p"} else ["plain", "dropped"]
        for name in names:
            scores = process(model, settings, logits[name])
            cases.append({"settings": settings, "row": name, "scores": encode(scores, logits[name])})
    golden = {
        "transformers": transformers.__version__,
        "prompt_ids": PROMPT,
        "completion_ids": COMPLETION,
        "eos_token_ids": EOS,
        "rows": {name: numbers(row) for name, row in logits.items()},
        "cases": cases,
    }
    path = pathlib.Path("crates/puna/tests/data/sampling_goldens.json")
    lines = json.dumps(golden).replace('{"settings"', '\n{"settings"').replace('"cases"', '\n"cases"')
    path.write_text(lines + "\n")
    print(path, path.stat().st_size, "bytes,", len(cases), "cases")


def encode(scores, row):
    """Only what changed: {id: score}; the ids whose score is the row's own are left out."""
    return {str(i): s for i, (s, r) in enumerate(zip(numbers(scores), numbers(row))) if s != r}


main()
