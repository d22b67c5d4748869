"""Makes the tiny golden models of crates/puna/tests/data/models with Transformers (5.23, torch 2.15).

    python tools/model_goldens.py OUTPUT_FOLDER

Random models cover what the shared set does not: biases everywhere, tied embeddings, one
key-value head, another activation; a head_dim that is not hidden_size / heads, with YaRN; the
kinds of RoPE whose frequencies change with the length of a sequence.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

BASE = dict(
    vocab_size=61, num_hidden_layers=2, max_position_embeddings=128, initializer_range=0.3,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
)
MODELS = {
    "mqa_bias_tied": dict(
        hidden_size=24, intermediate_size=29, num_attention_heads=3, num_key_value_heads=1,
        attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        hidden_act="gelu_pytorch_tanh", rms_norm_eps=1e-5,
    ),
    "head_dim_yarn": dict(
        hidden_size=20, intermediate_size=31, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32,
                          rope_theta=10000.0),
    ),
    "dynamic_rope": dict(
        hidden_size=16, intermediate_size=28, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=24,
        rope_scaling=dict(rope_type="dynamic", factor=2.0, rope_theta=10000.0),
    ),
    "longrope": dict(
        hidden_size=16, intermediate_size=28, num_attention_heads=2, num_key_value_heads=1,
        rope_scaling=dict(
            rope_type="longrope", factor=4.0, rope_theta=10000.0, original_max_position_embeddings=24,
            short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0, 2.6, 3.2, 3.8]),
    ),
}
IDS = torch.tensor([[1, 5, 9, 33, 50, 58, 4], [1, 8, 22, 60, 13, 3, 40]])
LABELS = torch.tensor([[-100, -100, 9, 33, 50, 58, 4], [1, 8, 22, 60, 13, -100, 40]])
LEFT = torch.tensor([[1, 5, 9, 33, 50, 58, 4], [0, 0, 0, 60, 13, 3, 40]])
LEFT_MASK = torch.tensor([[1] * 7, [0, 0, 0, 1, 1, 1, 1]])
RIGHT = torch.tensor([[1, 5, 9, 33, 50, 58, 4], [1, 8, 22, 60, 0, 0, 0]])
RIGHT_MASK = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]])
LONG = torch.tensor([[3 + (7 * i + 11 * row) % 50 for i in range(40)] for row in range(2)])
GENERATE = {
    "greedy": (IDS[:, :4], None, dict(max_new_tokens=12)),
    "greedy_left_pad": (LEFT[:, :6], LEFT_MASK[:, :6], dict(max_new_tokens=8)),
    "greedy_eos_list": (IDS[:, :4], None, dict(max_new_tokens=12, eos_token_id=list(range(2, 60, 7)))),
    "greedy_min_new_tokens": (
        IDS[:, :4], None,
        dict(max_new_tokens=12, min_new_tokens=6, eos_token_id=list(range(2, 60, 3)))),
    "rep_penalty": (IDS[:, :4], None, dict(max_new_tokens=12, repetition_penalty=1.7)),
    # Longer than the trained context of the models above that grow.
    "greedy_long_prompt": (LONG, None, dict(max_new_tokens=20)),
    "no_repeat_2gram": (IDS[:, :4], None, dict(max_new_tokens=12, no_repeat_ngram_size=2)),
}


def flat(value):
    """Tensors as nested lists with seven decimals."""
    if isinstance(value, torch.Tensor):
        return flat(value.tolist())
    if isinstance(value, (list, tuple)):
        return [flat(item) for item in value]
    return round(value, 7) if isinstance(value, float) else value


def record(model):
    """Everything that parity.rs compares."""
    full = model(IDS, labels=LABELS, output_hidden_states=True, output_attentions=True)
    layer = full.past_key_values.layers[0]
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 2, 3]])
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    first = model(IDS[:, :4], use_cache=True)
    second = model(IDS[:, 4:], past_key_values=first.past_key_values)
    out = {
        "full": dict(
            input_ids=IDS, labels=LABELS, loss=full.loss.item(), logits=full.logits,
            hidden_states=list(full.hidden_states), attentions=list(full.attentions),
            cache_keys_layer0=layer.keys, cache_values_layer0=layer.values),
        "loss_num_items_10": model(IDS, labels=LABELS, num_items_in_batch=10).loss.item(),
        "logits_to_keep_1": model(IDS, logits_to_keep=1).logits,
        "logits_to_keep_idx_0_3": model(IDS, logits_to_keep=torch.tensor([0, 3])).logits,
        "left_pad_mask_only": dict(
            input_ids=LEFT, attention_mask=LEFT_MASK,
            logits=model(LEFT, attention_mask=LEFT_MASK).logits),
        "left_pad_with_position_ids": dict(
            position_ids=positions,
            logits=model(LEFT, attention_mask=LEFT_MASK, position_ids=positions).logits),
        "right_pad": dict(
            input_ids=RIGHT, attention_mask=RIGHT_MASK,
            logits=model(RIGHT, attention_mask=RIGHT_MASK).logits),
        "packed_position_ids": dict(
            position_ids=packed,
            logits=model(IDS[:1], position_ids=packed, use_cache=False).logits),
        "cached_2step_logits_last3": second.logits,
    }
    out["generate"] = {}
    for name, (ids, mask, kwargs) in GENERATE.items():
        kwargs = dict(kwargs, do_sample=False)
        sequences = model.generate(ids, attention_mask=mask, **kwargs)
        out["generate"][name] = dict(
            kwargs=kwargs, input_ids=ids, attention_mask=mask, sequences=sequences)
    return out


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return flat(value)


def main(folder):
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**BASE | config)).eval()
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            elif parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
        target = Path(folder) / name
        model.save_pretrained(target)
        with torch.no_grad():
            expected = plain(record(model))
        (target / "expected.json").write_text(json.dumps(expected) + "\n")
        print(target, expected["full"]["loss"])


if __name__ == "__main__":
    main(sys.argv[1])
