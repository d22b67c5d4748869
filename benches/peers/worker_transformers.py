"""Transformers in bf16 on PyTorch: its forward with a cache, and no `generate` around it, which would cost more."""

import random
import time

import torch
import transformers
from transformers import DynamicCache, LlamaForCausalLM

import worker


class Transformers:
    def __init__(self, path: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = LlamaForCausalLM.from_pretrained(path, dtype=torch.bfloat16, local_files_only=True).eval()
        self.random = random.Random(1)

    def about(self) -> dict:
        return {
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "build": f"{torch.backends.cpu.get_cpu_capability()}, oneDNN {torch.backends.mkldnn.is_available()}",
        }

    def ids(self, n_sequences: int, n_tokens: int) -> torch.Tensor:
        flat = worker.fresh_ids(self.random, n_sequences * n_tokens, self.model.config.vocab_size)
        return torch.tensor(flat).reshape(n_sequences, n_tokens)

    @torch.inference_mode()
    def prefill(self, n_tokens: int) -> float:
        ids = self.ids(1, n_tokens)
        start = time.perf_counter()
        self.model(ids, past_key_values=DynamicCache(config=self.model.config), use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    @torch.inference_mode()
    def decode(self, n_sequences: int, n_tokens: int) -> float:
        cache = DynamicCache(config=self.model.config)
        steps = self.ids(n_sequences, n_tokens + 1).split(1, dim=1)
        self.model(steps[0], past_key_values=cache, use_cache=True)
        start = time.perf_counter()
        for ids in steps[1:]:
            self.model(ids, past_key_values=cache, use_cache=True)
        return time.perf_counter() - start


if __name__ == "__main__":
    worker.serve(Transformers)
