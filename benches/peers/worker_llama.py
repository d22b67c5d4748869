"""llama.cpp through its C functions: one call of llama_decode for each forward, so that Python costs next to nothing."""

import random
import time

import llama_cpp as llama

import worker


class LlamaCpp:
    def __init__(self, path: str, threads: int) -> None:
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        if not self.model:
            raise OSError("llama.cpp cannot load this file")
        self.threads = threads
        self.vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.random = random.Random(1)

    def about(self) -> dict:
        build = " ".join(llama.llama_print_system_info().decode().split())
        return {"version": f"llama-cpp-python {llama.__version__}", "build": build}

    def context(self, n_sequences: int, length: int):
        """A context with room for `n_sequences` of `length` tokens; other settings are the library's own."""
        params = llama.llama_context_default_params()
        params.n_seq_max = n_sequences
        params.n_ctx = n_sequences * -(-length // 256) * 256
        params.n_batch = max(params.n_batch, length)
        params.n_threads = params.n_threads_batch = self.threads
        context = llama.llama_init_from_model(self.model, params)
        if not context:
            raise MemoryError("llama.cpp cannot make a context")
        return context

    def forward(self, context, batch) -> None:
        status = llama.llama_decode(context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode gives {status}")
        llama.llama_synchronize(context)

    def prefill(self, n_tokens: int) -> float:
        context, batch = self.context(1, n_tokens), llama.llama_batch_init(n_tokens, 0, 1)
        fill(batch, worker.fresh_ids(self.random, n_tokens, self.vocab_size), range(n_tokens), [0] * n_tokens)
        batch.logits[n_tokens - 1] = 1
        try:
            # The first pass touches the context's memory, as Puna's has been; the second counts.
            self.forward(context, batch)
            llama.llama_memory_clear(llama.llama_get_memory(context), True)
            start = time.perf_counter()
            self.forward(context, batch)
            return time.perf_counter() - start
        finally:
            llama.llama_batch_free(batch)
            llama.llama_free(context)

    def decode(self, n_sequences: int, n_tokens: int) -> float:
        context, batch = self.context(n_sequences, n_tokens + 1), llama.llama_batch_init(n_sequences, 0, 1)
        ids = worker.fresh_ids(self.random, n_sequences * (n_tokens + 1), self.vocab_size)
        start = 0.0
        try:
            for step in range(n_tokens + 1):
                if step == 1:
                    start = time.perf_counter()
                rows = ids[step * n_sequences : (step + 1) * n_sequences]
                fill(batch, rows, [step] * n_sequences, range(n_sequences))
                for row in range(n_sequences):
                    batch.logits[row] = 1
                self.forward(context, batch)
            return time.perf_counter() - start
        finally:
            llama.llama_batch_free(batch)
            llama.llama_free(context)


def fill(batch, ids, positions, sequences) -> None:
    """One row for each id; no row asks for logits yet."""
    batch.n_tokens = len(ids)
    for row, (token, position, sequence) in enumerate(zip(ids, positions, sequences)):
        batch.token[row] = token
        batch.pos[row] = position
        batch.n_seq_id[row] = 1
        batch.seq_id[row][0] = sequence
        batch.logits[row] = 0


if __name__ == "__main__":
    worker.serve(LlamaCpp)
