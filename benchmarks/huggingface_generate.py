"""Seconds that transformers' `generate` takes for the work on standard input, with torch alone."""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

work = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(work["folder"], dtype=torch.float32)
prompts = torch.tensor(work["prompts"])
options = {
    "max_new_tokens": work["new"], "min_new_tokens": work["new"], "do_sample": True,
    "num_return_sequences": work["n"], "top_k": 0, "top_p": 1.0, "temperature": 1.0,
    "pad_token_id": 0,
}  # fmt: skip
seconds = []
with torch.inference_mode():
    for _ in range(3):
        start = time.perf_counter()
        model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
        seconds.append(time.perf_counter() - start)
print(min(seconds[1:]))
