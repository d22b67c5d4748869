"""OpenVINO GenAI, which converts a GGUF file as it loads it. Its own generation loop runs: there is none below to call."""

import random
import time
from importlib.metadata import version

import numpy as np
import openvino as ov
import openvino_genai as genai
from gguf import GGUFReader

import worker


class OpenVino:
    def __init__(self, path: str, threads: int) -> None:
        self.pipeline = genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
        self.vocab_size = GGUFReader(path).fields["llama.vocab_size"].contents()
        self.random = random.Random(1)

    def about(self) -> dict:
        core = ov.Core()
        return {
            "version": f"openvino-genai {version('openvino-genai')}, openvino {version('openvino')}",
            "build": f"capabilities {', '.join(core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'))}",
        }

    def generate(self, n_sequences: int, n_prompt: int, n_new: int):
        """Greedy; never stops early."""
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = n_new, True, False
        flat = worker.fresh_ids(self.random, n_sequences * n_prompt, self.vocab_size)
        ids = np.array(flat, np.int64).reshape(n_sequences, n_prompt)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        start = time.perf_counter()
        result = self.pipeline.generate(inputs, config)
        seconds = time.perf_counter() - start
        made = [len(tokens) for tokens in result.tokens]
        if made != [n_new] * n_sequences:
            raise RuntimeError(f"asked for {n_new} tokens of {n_sequences} sequences, got {made}")
        return result, seconds

    def prefill(self, n_tokens: int) -> float:
        """The time to the first token."""
        return self.generate(1, n_tokens, 1)[1]

    def decode(self, n_sequences: int, n_tokens: int) -> float:
        """The time of every token but the first, as the library's own counters have it."""
        result, _ = self.generate(n_sequences, 1, n_tokens + 1)
        return float(sum(result.perf_metrics.raw_metrics.m_durations)) / 1e6


if __name__ == "__main__":
    worker.serve(OpenVino)
