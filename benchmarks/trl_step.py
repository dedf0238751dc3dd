"""Seconds that TRL's GRPOTrainer takes for the update on standard input, with torch alone.

The trainer's own loop runs; `rollout_func`, its hook for other samplers, hands it the given
completions.  Timed is what lies between its callbacks before and after an update: reference
log-probabilities, loss, gradient and AdamW; of generation only the decoding of given tokens is
left.  Float32, no gradient checkpointing, a group a micro-batch; the rest is its default.  The
best of the updates after the first one.
"""

import contextlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from itertools import count
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    """Seconds of every update."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *arguments: Any, **options: Any) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def main() -> list[float]:
    work = json.load(sys.stdin)
    problems, n = len(work["contexts"]), len(work["completions"][0])

    def rollouts(prompts: list[str], trainer: GRPOTrainer) -> dict[str, list]:
        """A prompt's text is the number of its problem."""
        numbers: dict[int, Any] = defaultdict(count)
        ids = [int(prompt) for prompt in prompts]
        completions = [work["completions"][i][next(numbers[i])] for i in ids]
        return {
            "prompt_ids": [work["contexts"][i] for i in ids],
            "completion_ids": completions,
            "logprobs": [[-1.0] * len(completion) for completion in completions],
        }

    def reward(completions: list[str], **columns: Any) -> list[float]:
        return [work["rewards"][i % n] for i in range(len(completions))]

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        # The trainer reads its reference from the folder that the policy came from.
        LlamaForCausalLM(LlamaConfig(**work["model"])).save_pretrained(folder)
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        settings = GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False,
            per_device_train_batch_size=n, gradient_accumulation_steps=problems,
            num_generations=n, max_completion_length=len(work["completions"][0][0]),
            beta=work["beta"], learning_rate=1e-6, max_steps=work["updates"], report_to=[],
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model,
            reward,
            settings,
            Dataset.from_dict({"prompt": [str(i) for i in range(problems)]}),
            processing_class=AutoTokenizer.from_pretrained(work["tokenizer"]),
            callbacks=[clock],
            rollout_func=rollouts,
        )
        trainer.train()
    return clock.seconds


with contextlib.redirect_stdout(sys.stderr):  # where the trainer's log goes
    seconds = main()
print(min(seconds[1:]))
