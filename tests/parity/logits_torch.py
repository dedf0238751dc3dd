"""Logits and greedy continuations of model folders, computed by transformers on torch.

Run by the interpreter of an environment with torch; `compare.py` does so.

    python logits_torch.py PROMPTS.npz OUTPUT.npz FOLDER...

PROMPTS holds int64 arrays `prompt_0`, `prompt_1`, ... (one per folder, [T]) and the scalar
`continuation`.  OUTPUT gets `tokens_<i>` (int64 [T + continuation]), the prompt with its greedy
continuation; the logits of all of it, `logits_<i>` in float32 and `exact_<i>` in float64, both
[T + continuation, V]; and `versions`.
"""

import sys

import numpy as np
import torch
import transformers


@torch.inference_mode()
def main(prompts_file: str, output_file: str, *folders: str) -> None:
    prompts = np.load(prompts_file)
    results = {"versions": np.array([torch.__version__, transformers.__version__])}
    for i, folder in enumerate(folders):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        model.eval()
        tokens = torch.from_numpy(prompts[f"prompt_{i}"])[None]
        out = model(tokens, use_cache=True)
        for _ in range(int(prompts["continuation"])):
            token = out.logits[:, -1:].argmax(-1)
            tokens = torch.cat([tokens, token], dim=1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        results[f"tokens_{i}"] = tokens[0].numpy()
        results[f"logits_{i}"] = model(tokens).logits[0].numpy()
        results[f"exact_{i}"] = model.double()(tokens).logits[0].numpy()
    np.savez(output_file, **results)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    main(*sys.argv[1:])
