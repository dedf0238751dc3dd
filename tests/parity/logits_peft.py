"""Logits of adapter folders, computed by PEFT on torch.

Run by the interpreter of an environment with peft; `compare_peft.py` does so.

    python logits_peft.py PROMPTS.npz OUTPUT.npz ADAPTER...

PROMPTS holds int64 arrays `prompt_0`, `prompt_1`, ... (one per adapter, [T]).  OUTPUT gets, in
float32 [T, V], `base_<i>` of the model that the adapter names, `logits_<i>` with the adapter, and
`versions`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers


@torch.inference_mode()
def main(prompts_file: str, output_file: str, *folders: str) -> None:
    prompts = np.load(prompts_file)
    versions = [module.__version__ for module in (torch, transformers, peft)]
    results = {"versions": np.array(versions)}
    for i, folder in enumerate(folders):
        settings = json.loads((Path(folder) / "adapter_config.json").read_text("utf-8"))
        model = transformers.AutoModelForCausalLM.from_pretrained(
            settings["base_model_name_or_path"], dtype=torch.float32, attn_implementation="eager"
        ).eval()
        tokens = torch.from_numpy(prompts[f"prompt_{i}"])[None]
        results[f"base_{i}"] = model(tokens).logits[0].numpy()
        model = peft.PeftModel.from_pretrained(model, folder).eval()
        results[f"logits_{i}"] = model(tokens).logits[0].numpy()
    np.savez(output_file, **results)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    main(*sys.argv[1:])
