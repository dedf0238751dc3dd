"""Seconds that Tunix's GRPO takes for the update on standard input, in a process of its own.

What its `GRPOLearner` does after generation, with its own parts and without its cluster of roles:
reference log-probabilities through `InferenceWorker`, then its RL `Trainer` over a group a
micro-batch, with its registered GRPO loss and AdamW.  Float32, no rematerialisation.  The
best of the updates after the first one, which compiles.
"""

import contextlib
import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.rl import algo_core, common, function_registry
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.rl.inference.inference_worker import InferenceWorker
from tunix.rl.trainer import Trainer
from tunix.sft.peft_trainer import TrainingConfig

SPECIAL = {"pad_id": 0, "eos_id": 1}  # neither is among the tokens


def main() -> list[float]:
    work = json.load(sys.stdin)
    shape, n = work["model"], len(work["completions"][0])
    config = ModelConfig(
        num_layers=shape["num_hidden_layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["hidden_size"],
        hidden_dim=shape["intermediate_size"],
        num_heads=shape["num_attention_heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["num_key_value_heads"],
        rope_theta=shape["rope_theta"],
        norm_eps=shape["rms_norm_eps"],
        weight_tying=shape["tie_word_embeddings"],
    )
    policy, reference = (Llama3(config, rngs=nnx.Rngs(0)) for _ in range(2))
    worker = InferenceWorker({"reference": reference})
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))
    accumulated = len(work["contexts"])
    training = TrainingConfig(eval_every_n_steps=1000, gradient_accumulation_steps=accumulated)
    trainer = Trainer(policy, optimizer, training, custom_checkpoint_metadata_fn=dict)
    trainer.is_managed_externally = True  # by a learner, which trains more than once
    settings = GRPOConfig(num_generations=n, beta=work["beta"], kl_loss_mode="low_var_kl")
    settings.temperature = 1.0
    loss = function_registry.get_policy_loss_fn("grpo")
    trainer.with_loss_fn(
        lambda model, train_example: loss(model, train_example, algo_config=settings, **SPECIAL),
        has_aux=True,
    ).with_gen_model_input_fn(lambda example: {"train_example": example})
    advantages = jnp.asarray(algo_core.compute_advantages(jnp.asarray(work["rewards"]), n))

    def example(context: list[int], completions: list[list[int]]) -> common.TrainExample:
        prompt, completion = jnp.asarray([context] * n), jnp.asarray(completions)
        return common.TrainExample(
            prompt_ids=prompt,
            prompt_mask=prompt != SPECIAL["pad_id"],
            completion_ids=completion,
            completion_mask=completion != SPECIAL["pad_id"],
            advantages=advantages,
            ref_per_token_logps=worker.get_ref_per_token_logps(prompt, completion, **SPECIAL),
            old_per_token_logps=None,
        )

    seconds, groups = [], list(zip(work["contexts"], work["completions"], strict=True))
    with Mesh(np.asarray(jax.devices()).reshape(1, 1), ("fsdp", "tp")):
        for _ in range(work["updates"]):
            start = time.perf_counter()
            trainer.train([example(*group) for group in groups])
            jax.block_until_ready(nnx.state(policy))
            seconds.append(time.perf_counter() - start)
    return seconds


with contextlib.redirect_stdout(sys.stderr):  # where the trainer's log goes
    seconds = main()
print(min(seconds[1:]))
