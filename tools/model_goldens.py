"""Makes the tiny golden models of crates/puna/tests/data/models and the heads of tests/data/heads
with Transformers (5.23, torch 2.15).

    python tools/model_goldens.py models OUTPUT_FOLDER
    python tools/model_goldens.py heads OUTPUT_FOLDER

Random models cover what the shared set does not: biases everywhere, tied embeddings, one
key-value head, another activation; a head_dim that is not hidden_size / heads, with YaRN; the
kinds of RoPE whose frequencies change with the length of a sequence.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from transformers import (
    DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaForQuestionAnswering,
    LlamaForSequenceClassification, LlamaForTokenClassification, StaticCache,
)

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
    if isinstance(value, list):
        return [plain(item) for item in value]
    return flat(value)


HEAD_BASE = dict(
    vocab_size=31, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, attn_implementation="eager",
)
H_IDS = torch.tensor([[1, 5, 9, 30, 7], [1, 8, 0, 22, 13]])
H_RIGHT = torch.tensor([[1, 5, 9, 30, 7], [1, 8, 22, 0, 0]])
H_LEFT = torch.tensor([[1, 5, 9, 30, 7], [0, 0, 1, 8, 22]])
H_EMPTY = torch.tensor([[1, 5, 9, 30, 7], [0, 0, 0, 0, 0]])


def mask_of(ids):
    mask = (ids != 0).long()
    mask[:, 0] |= mask.sum(-1) == 0
    return mask


def record_sequence(model):
    """Logits of each way of padding, and the logits of every position."""
    out = {}
    for name, ids in dict(inside=H_IDS, right=H_RIGHT, left=H_LEFT, empty=H_EMPTY).items():
        mask = mask_of(ids)
        hidden = model.model(ids, attention_mask=mask).last_hidden_state
        out[name] = dict(
            input_ids=ids, attention_mask=mask, logits=model(ids, attention_mask=mask).logits,
            token_logits=model.score(hidden))
    embeds = model.get_input_embeddings()(H_RIGHT)
    out["embeds"] = dict(logits=model(inputs_embeds=embeds).logits)
    return out


def sequence_losses(model, cases):
    """The loss of each set of labels, and what the configuration says afterwards."""
    out = []
    for problem_type, labels in cases:
        model.config.problem_type = problem_type
        loss = model(H_RIGHT, attention_mask=mask_of(H_RIGHT), labels=labels).loss.item()
        out.append(dict(
            given=problem_type, labels=labels, is_integer=not labels.is_floating_point(),
            loss=None if loss != loss else loss, problem_type=model.config.problem_type))
    model.config.problem_type = None
    return out


def narrow(model, ids, labels):
    """What the model computes in the narrow types."""
    out = {}
    for dtype in (torch.bfloat16, torch.float16):
        output = copy.deepcopy(model).to(dtype)(ids, attention_mask=mask_of(ids), labels=labels)
        out[str(dtype).removeprefix("torch.")] = dict(
            logits=output.logits.float(), loss=output.loss.item())
    return out


def record_sequence_3(model):
    return record_sequence(model) | {"losses": sequence_losses(model, [
        (None, torch.tensor([2, 0])),
        (None, torch.tensor([-100, 1])),
        (None, torch.tensor([-100, -100])),
        (None, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.5]])),
        ("multi_label_classification", torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])),
        ("regression", torch.tensor([[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]])),
    ]), "narrow": narrow(model, H_RIGHT, torch.tensor([2, 0]))}


def record_sequence_1(model):
    return record_sequence(model) | {"losses": sequence_losses(model, [
        (None, torch.tensor([0.5, -1.25])),
        (None, torch.tensor([[0.5], [3.0]])),
    ])}


def record_token(model):
    labels = torch.tensor([[0, 2, -100, 1, 1], [-100, 3, 2, -100, 0]])
    mask = mask_of(H_RIGHT)
    full = model(H_RIGHT, attention_mask=mask, labels=labels, output_hidden_states=True)
    return dict(
        input_ids=H_RIGHT, attention_mask=mask, labels=labels, logits=full.logits,
        loss=full.loss.item(), last_hidden_state=full.hidden_states[-1], narrow=narrow(model, H_RIGHT, labels))


def record_question(model):
    mask = mask_of(H_LEFT)
    full = model(H_LEFT, attention_mask=mask)
    out = dict(input_ids=H_LEFT, attention_mask=mask, start_logits=full.start_logits,
               end_logits=full.end_logits, losses=[])
    for start, end, items in [
        ([1, 0], [3, 4], None), ([-3, 2], [99, 4], None), ([5, 7], [5, 9], None),
        ([1, 0], [3, 9], 3), ([[1], [2]], [[4], [4]], None),
    ]:
        extra = {} if items is None else dict(num_items_in_batch=items)
        loss = model(H_LEFT, attention_mask=mask, start_positions=torch.tensor(start),
                     end_positions=torch.tensor(end), **extra).loss.item()
        out["losses"].append(dict(start=start, end=end, num_items_in_batch=items,
                                  loss=None if loss != loss else loss))
    return out


def record_masks(model):
    """4-D masks, logits_to_keep in two dimensions, shifted labels."""
    generator = torch.Generator().manual_seed(7)
    low = torch.finfo(torch.float32).min
    causal = torch.tril(torch.ones(5, 5, dtype=torch.bool))
    tree = causal.clone()
    tree[3, 1] = tree[4, 3] = False
    bias = torch.randn(2, 1, 5, 5, generator=generator).masked_fill(~causal, low)
    blind = tree[None, None].repeat(2, 1, 1, 1)
    blind[1, 0, 2] = False
    positions = torch.tensor([[0, 1, 2, 2, 3], [0, 1, 2, 3, 4]])
    run = lambda mask, **extra: model(H_IDS, attention_mask=mask, **extra).logits
    additive = torch.zeros(1, 1, 5, 5).masked_fill(~tree, low)
    out = dict(
        input_ids=H_IDS, bias=bias, biased=run(bias), tree=tree.long(), position_ids=positions,
        additive=run(additive, position_ids=positions),
        keep_ids=model(H_IDS, logits_to_keep=torch.tensor([[0, 4], [3, 1]])).logits,
        keep_mask=model(H_IDS, logits_to_keep=torch.tensor([[1, 0, 0, 1, 0], [0, 1, 1, 1, 0]]).bool()).logits,
        keep_negative=model(H_IDS, logits_to_keep=torch.tensor([-1, 0])).logits,
        keep_but_first=model(H_IDS, logits_to_keep=-2).logits,
    )
    shift_labels = torch.tensor([[5, 9, 30, -100, 3], [-100, 8, 22, 13, 2]])
    full = model(H_IDS, labels=shift_labels, shift_labels=shift_labels)
    out["shift_labels"] = dict(labels=shift_labels, loss=full.loss.item())
    model.set_attn_implementation("sdpa")
    out["boolean"] = run(tree[None, None], position_ids=positions)
    out["blind"] = dict(mask=blind.long(), logits=run(blind))
    model.set_attn_implementation("eager")
    # The same through a cache: the first three tokens, then a mask of the last two.
    cache = DynamicCache(config=model.config)
    model(H_IDS[:, :3], past_key_values=cache)
    out["cached"] = model(
        H_IDS[:, 3:], past_key_values=cache, attention_mask=bias[:, :, 3:],
    ).logits
    return out


def layer_of(cache):
    return dict(keys=cache.layers[1].keys, values=cache.layers[1].values)


def record_caches(model):
    """Static caches, and what the operations leave."""
    out = dict(input_ids=H_IDS)
    cache = StaticCache(config=model.config, max_cache_len=8)
    first = model(H_IDS[:, :3], past_key_values=cache, output_attentions=True)
    second = model(H_IDS[:, 3:], past_key_values=cache, output_attentions=True)
    out["static"] = dict(
        first=first.logits, second=second.logits, attentions=list(second.attentions), **layer_of(cache))
    cache = StaticCache(config=model.config, max_cache_len=8)
    mask = mask_of(H_LEFT)
    model(H_LEFT[:, :4], attention_mask=mask[:, :4], past_key_values=cache)
    last = model(H_LEFT[:, 4:], attention_mask=mask, past_key_values=cache)
    out["static_left_pad"] = dict(input_ids=H_LEFT, attention_mask=mask, logits=last.logits)
    low = torch.finfo(torch.float32).min
    cache = StaticCache(config=model.config, max_cache_len=8)
    model(H_IDS[:, :3], past_key_values=cache)
    wide = torch.full((1, 1, 2, 8), low)
    wide[..., 0, :4] = 0
    wide[..., 1, 1:5] = 0
    out["static_4d"] = dict(
        mask=wide, logits=model(H_IDS[:, 3:], attention_mask=wide, past_key_values=cache).logits)
    out["operations"] = []
    for name, change, tokens in [
        ("crop", lambda cache: cache.crop(-2), H_IDS[:, 3:]),
        ("reorder_cache", lambda cache: cache.reorder_cache(torch.tensor([1, 1])), H_IDS[:, 3:]),
        ("batch_repeat_interleave", lambda cache: cache.batch_repeat_interleave(2),
         H_IDS[:, 3:].repeat_interleave(2, dim=0)),
        ("batch_select_indices", lambda cache: cache.batch_select_indices(torch.tensor([1])),
         H_IDS[:1, 3:]),
    ]:
        cache = DynamicCache(config=model.config)
        model(H_IDS, past_key_values=cache)
        change(cache)
        length, layer = cache.get_seq_length(), layer_of(cache)
        logits = model(tokens, past_key_values=cache).logits
        out["operations"].append(
            dict(name=name, length=length, tokens=tokens, logits=logits, **layer))
    return out


HEADS = {
    "sequence_3": (LlamaForSequenceClassification, dict(num_labels=3), record_sequence_3),
    "sequence_1": (LlamaForSequenceClassification, dict(num_labels=1), record_sequence_1),
    "token": (LlamaForTokenClassification, dict(num_labels=4), record_token),
    "question": (LlamaForQuestionAnswering, {}, record_question),
    "masks": (LlamaForCausalLM, {}, record_masks),
    "caches": (LlamaForCausalLM, {}, record_caches),
}


def write(model, target, record):
    """Saves a model, its norms and biases at random too, with what it computes."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(target)
    with torch.no_grad():
        expected = plain(record(model))
    (target / "expected.json").write_text(json.dumps(expected) + "\n")
    print(target)


def main(kind, folder):
    torch.set_num_threads(1)
    if kind == "heads":
        for seed, (name, (model_class, extra, record)) in enumerate(HEADS.items()):
            torch.manual_seed(100 + seed)
            model = model_class(LlamaConfig(**HEAD_BASE | extra)).eval()
            write(model, Path(folder) / name, record)
        return
    for seed, (name, config) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**BASE | config)).eval()
        write(model, Path(folder) / name, record)


if __name__ == "__main__":
    main(*sys.argv[1:])
