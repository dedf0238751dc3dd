"""A run whose prompts and rollouts are hard to show: long, without spaces, in other scripts."""

import json
from dataclasses import replace
from pathlib import Path

from fst_jax.fast.pool import Pool, Prompt
from tests.reporting.synthetic import Plan, write_run

MARKUP = "<script>document.title = 'taken over'</script><img src='http://example.invalid/a.png'>"
RIGHT_TO_LEFT = "ابدأ من الهدف وارجع إلى البداية، ثم اكتب الإجابة بين قوسين."
OTHER_SCRIPTS = "Ответ — в скобках; 答えは括弧の中に書いてください。 Größe ≥ 3 µm 🙂"
LONG_WORD = "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz" * 4
PATH = "/".join(["a_folder_with_a_name"] * 12)


def long_prompt(changed: str) -> str:
    """Some 500 tokens, of which one line in the middle is `changed`."""
    advice = [f"{n}. Read line {n} of the problem, note what it says, go on." for n in range(1, 33)]
    return "\n".join(
        [*advice[:16], changed, LONG_WORD, PATH, RIGHT_TO_LEFT, OTHER_SCRIPTS, MARKUP, *advice[16:]]
    )


def hard_pool(step: int, generations: int = 9) -> Pool:
    """A lineage of long prompts, each with one line changed, below a short seed prompt."""
    prompts = [Prompt("Answer the question.", scores={"a": 0.0, "b": 0.0})]
    for n in range(1, generations + 1):
        text = long_prompt(f"Rule {n}: {'begin at the goal' if n % 2 else 'turn the path round'}.")
        scores = {"a": 1.0, "b": n / generations}
        prompts.append(Prompt(text, prompts[-1].id, "lm", min(n, step), scores))
    active = (prompts[-1].id, prompts[-2].id, prompts[-3].id, prompts[0].id)
    return Pool(tuple(prompts), active, step=step, rounds=2)


def write_hard_run(folder: Path, plan: Plan | None = None) -> Path:
    """An FST run with such a pool, samples, warnings, and a reflection model that has a price."""
    plan = plan or Plan("fst", own=lambda step: 0.1 + step / 100)
    settings = {"fast": {"reflector": "lm", "lm_price_in": 0.3, "lm_price_out": 1.2}}
    write_run(folder, replace(plan, settings={**plan.settings, **settings}))
    (folder / "pool.json").unlink()
    (folder / "pool").mkdir()
    for step in (0, plan.steps - plan.cycle):
        hard_pool(step, 9 if step else 3).save(folder / "pool" / f"{step}.json")
    _with_costs_and_warnings(folder / "metrics.jsonl")
    (folder / "samples").mkdir()
    for step, weights, context in ((0, "base", "seed"), (plan.steps, "trained", "pool")):
        lines = [json.dumps(_sample(n, weights, context)) for n in range(3)]
        (folder / "samples" / f"{step}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _with_costs_and_warnings(path: Path) -> None:
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        if event["event"] == "evolve":
            event |= {"reflection_prompt_tokens": 51234, "reflection_completion_tokens": 2345,
                      "reflection_cost": 0.0182,
                      "rejected_by_reason": {"over budget": 2, MARKUP[:20]: 1}}  # fmt: skip
        if event["event"] == "step" and 20 <= event["step"] < 40:
            event["warnings"] = [f"truncation: 61 % of the completions were cut off at {PATH}"]
            event["kl_k3"] = event["step"] / 900
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def _sample(n: int, weights: str, context: str) -> dict[str, object]:
    question = (f"{MARKUP} {LONG_WORD}", RIGHT_TO_LEFT, "What is 6 × 7?")[n]
    return {
        "event": "eval", "weights": weights, "context": context, "problem": f"test-{n}",
        "question": question, "answer": RIGHT_TO_LEFT if n == 1 else "42",
        "prompt": long_prompt("Rule.") if context == "pool" else "Answer the question.",
        "text": f"{OTHER_SCRIPTS}\n{'So the next number is 42. ' * 60}\n{PATH}{PATH}",
        "reward": float(context == "pool"), "category": "correct", "feedback": "",
    }  # fmt: skip
