"""Goldens of SmolLM2-135M-Instruct, made with Transformers on float32 weights from its GGUF.

Reads   the GGUF, and prompts.json, perplexity.txt, mixed_text.json in crates/puna/tests/data/smollm2.
Writes  greedy.json, perplexity.json, tokenization.json there: ids and numbers.

Every tensor is dequantised by the `gguf` package; rows of q and k go back to the half-split order of
Hugging Face. The tokenizer is rebuilt from the GGUF's vocabulary and merges as the model's own
tokenizer.json has it: digits one by one, then GPT-2's byte-level pattern, no prefix space.
Needs: torch, transformers 5.23, gguf, tokenizers (`make goldens` makes the environment).
"""

import argparse
import hashlib
import json
import pathlib

import torch
import transformers
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mixed_text import mixed_text

DATA = pathlib.Path(__file__).resolve().parent.parent / "crates/puna/tests/data/smollm2"
CONTROL = 3  # tokenizer.ggml.token_type of a control token
NEW_TOKENS = 40

NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def read_config(reader):
    def value(key):
        return reader.fields[key].contents()

    return LlamaConfig(
        vocab_size=value("llama.vocab_size"),
        hidden_size=value("llama.embedding_length"),
        intermediate_size=value("llama.feed_forward_length"),
        num_hidden_layers=value("llama.block_count"),
        num_attention_heads=value("llama.attention.head_count"),
        num_key_value_heads=value("llama.attention.head_count_kv"),
        max_position_embeddings=value("llama.context_length"),
        rms_norm_eps=float(value("llama.attention.layer_norm_rms_epsilon")),
        rope_parameters={"rope_type": "default", "rope_theta": float(value("llama.rope.freq_base"))},
        bos_token_id=value("tokenizer.ggml.bos_token_id"),
        eos_token_id=value("tokenizer.ggml.eos_token_id"),
        pad_token_id=value("tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=True,
    )


def half_split(weight, n_heads):
    """Rows of one head: interleaved (GGUF) -> half-split (Hugging Face)."""
    rows, columns = weight.shape
    return weight.reshape(n_heads, rows // n_heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def load_model(reader):
    config = read_config(reader)
    state = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        name = tensor.name
        if name.startswith("blk."):
            _, layer, rest = name.split(".", 2)
            if rest == "attn_q.weight":
                weight = half_split(weight, config.num_attention_heads)
            elif rest == "attn_k.weight":
                weight = half_split(weight, config.num_key_value_heads)
            state[f"model.layers.{layer}.{NAMES[rest]}"] = weight
        else:
            state[NAMES[name]] = weight
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing not in ([], ["lm_head.weight"]) or unexpected:
        raise SystemExit(f"names do not match: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.float().eval()


def load_tokenizer(reader):
    def value(key):
        return reader.fields["tokenizer." + key].contents()

    tokens, types = value("ggml.tokens"), value("ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in value("ggml.merges")]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=value("chat_template"))


def greedy(model, prompt_ids):
    """Up to NEW_TOKENS greedy ids (eos included where it comes first) and the smallest lead of a winner."""
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt_ids]),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    ids = out.sequences[0, len(prompt_ids) :].tolist()
    leads = []
    for logits in out.logits:
        first, second = logits[0].topk(2).values.tolist()
        leads.append(first - second)
    return ids, min(leads)


def write(name, value):
    path = DATA / name
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path.name}: {path.stat().st_size} bytes")


def greedy_goldens(model, tokenizer, about):
    prompts = json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))
    eos = model.config.eos_token_id
    cases = []
    for kind in ("plain", "chats"):
        for index, prompt in enumerate(prompts[kind]):
            if kind == "plain":
                prompt_ids = tokenizer(prompt)["input_ids"]
            else:
                prompt_ids = tokenizer.apply_chat_template(
                    prompt, add_generation_prompt=True, return_dict=False
                )
            ids, lead = greedy(model, prompt_ids)
            reason = "stop" if ids[-1] == eos else "length"
            print(f"{kind}[{index}] {reason}, smallest lead {lead:.4f}: {tokenizer.decode(ids)!r}")
            cases.append(
                {"prompt": f"{kind}/{index}", "prompt_ids": prompt_ids, "ids": ids,
                 "finish_reason": reason, "smallest_lead": round(lead, 5)}
            )
    write("greedy.json", {"about": about, "new_tokens": NEW_TOKENS, "eos_token_id": eos, "cases": cases})


def window_nll(model, ids):
    """Sum of -log p(ids[t] | ids[..t]) for t = 1.., in f64 from f32 logits."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    return -logprobs.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()


def perplexity_goldens(model, tokenizer, about):
    text = (DATA / "perplexity.txt").read_text(encoding="utf-8")
    all_ids = tokenizer(text)["input_ids"]
    ids = all_ids[:1024]
    if len(ids) < 1024:
        raise SystemExit(f"perplexity.txt has only {len(ids)} tokens")
    protocol = (
        "The text's first 1,024 ids, no BOS (the GGUF says add_bos_token = false), cut into windows of "
        "`context` ids that do not overlap. In each window every id but the first is predicted from the "
        "ids before it in that window. mean_nll is the mean over all predicted ids, natural logarithm."
    )
    cases = []
    for context in (1024, 256):
        windows = [ids[start : start + context] for start in range(0, len(ids), context)]
        tokens = sum(len(window) - 1 for window in windows)
        mean = sum(window_nll(model, window) for window in windows) / tokens
        cases.append({"context": context, "tokens": tokens, "mean_nll": mean,
                      "ppl": float(torch.tensor(mean, dtype=torch.float64).exp())})
        print(f"perplexity, context {context}: {cases[-1]}")
    write("perplexity.json", {"about": about, "protocol": protocol, "text_tokens": len(all_ids),
                              "max_tokens": 1024, "ids": ids, "cases": cases})


def tokenization_goldens(tokenizer, about):
    text = mixed_text(json.loads((DATA / "mixed_text.json").read_text(encoding="utf-8")))
    ids = tokenizer(text)["input_ids"]
    as_bytes = torch.tensor(ids, dtype=torch.int32).numpy().astype("<u4").tobytes()
    write(
        "tokenization.json",
        {
            "about": about,
            "text_bytes": len(text.encode("utf-8")),
            "text_sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
            "n_ids": len(ids),
            "ids_sha256": hashlib.sha256(as_bytes).hexdigest(),
            "ids_sha256_of": "the ids as little-endian u32",
            "first_ids": ids[:400],
        },
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=pathlib.Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    args = parser.parse_args()
    with args.gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    reader = GGUFReader(args.gguf)
    tokenizer = load_tokenizer(reader)
    about = {"gguf_sha256": digest, "transformers": transformers.__version__, "torch": torch.__version__,
             "dtype": "float32 (dequantised)", "made_by": "tools/smollm2_goldens.py"}
    tokenization_goldens(tokenizer, about)
    model = load_model(reader)
    greedy_goldens(model, tokenizer, about)
    perplexity_goldens(model, tokenizer, about)


if __name__ == "__main__":
    main()
