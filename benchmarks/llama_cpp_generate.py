"""Seconds that llama.cpp takes for the work on standard input, with llama-cpp-python alone.

The GGUF file is brought to float32 first, into a file beside it, so that all do the same products.
"""

import json
import sys
import time
from pathlib import Path

import llama_cpp as cpp

work = json.load(sys.stdin)
source, threads = Path(work["gguf"]), work["threads"]
model_file = source.with_suffix(".f32.gguf")
cpp.llama_backend_init()
if not model_file.exists():
    how = cpp.llama_model_quantize_default_params()
    how.ftype, how.allow_requantize, how.nthread = cpp.LLAMA_FTYPE_ALL_F32, True, threads
    failed = cpp.llama_model_quantize(bytes(source), bytes(model_file), how)
    assert not failed, f"{source} could not be brought to float32"
prompts, n, new = work["prompts"], work["n"], work["new"]
count, length = len(prompts) * n, len(prompts[0])
model = cpp.llama_model_load_from_file(bytes(model_file), cpp.llama_model_default_params())
options = cpp.llama_context_default_params()
options.n_ctx, options.n_seq_max = count * (length + new), count
options.n_batch = options.n_ubatch = 512
options.kv_unified = True  # else sequences cannot share what one of them computed
options.n_threads = options.n_threads_batch = threads
options.type_k = options.type_v = cpp.GGML_TYPE_F32
context = cpp.llama_init_from_model(model, options)
batch = cpp.llama_batch_init(options.n_batch, 0, 1)


def decode(tokens: list[tuple[int, int, int, bool]]) -> None:
    """Run (token, position, sequence, wants logits) through the model, n_batch at a time."""
    batch.n_tokens = len(tokens)
    for i, (token, position, sequence, wanted) in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
    assert cpp.llama_decode(context, batch) == 0


def generate() -> float:
    memory = cpp.llama_get_memory(context)
    cpp.llama_memory_clear(memory, True)
    samplers = [cpp.llama_sampler_init_dist(seed) for seed in range(count)]
    start = time.perf_counter()
    token = [0] * count
    together = max(1, options.n_batch // length)  # prompts of a prefill call
    for first in range(0, len(prompts), together):
        some = range(first, min(first + together, len(prompts)))
        decode([(t, p, i * n, p == length - 1) for i in some for p, t in enumerate(prompts[i])])
        for place, i in enumerate(some):
            for s in range(i * n, (i + 1) * n):
                token[s] = cpp.llama_sampler_sample(samplers[s], context, (place + 1) * length - 1)
                if s > i * n:
                    cpp.llama_memory_seq_cp(memory, i * n, s, 0, length)
    for step in range(new - 1):
        decode([(token[s], length + step, s, True) for s in range(count)])
        token = [cpp.llama_sampler_sample(samplers[s], context, s) for s in range(count)]
    return time.perf_counter() - start


print(min([generate() for _ in range(3)][1:]))
