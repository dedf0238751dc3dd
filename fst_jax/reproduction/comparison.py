"""FST beside RL in figures for the console: what the demonstration ends with."""

from fst_jax.reporting.runs import Run


def table(rl: Run, fst: Run) -> list[str]:
    """Held-out reward by step, each arm under its own prompts, with the rollouts spent.

    A step costs both arms the same rollouts; what FST's prompts cost on top has its own column.
    """
    pairs = zip(rl.curve(), fst.curve(), strict=False)
    k, n = fst.curve()[0].k, fst.curve()[0].n
    lines = [
        f"held-out reward: mean@{k} over {n // k} problems",
        f"{'step':>6}{'rollouts':>10}{'RL alone':>10}{'FST':>8}{'rollouts for prompts':>22}",
    ]
    lines += [
        f"{one.step:>6}{one.rollouts:>10}{one.mean_at_k:>10.3f}{other.mean_at_k:>8.3f}"
        f"{other.evolve_rollouts:>22}"
        for one, other in pairs
    ]
    ends = (rl.curve()[-1], fst.curve()[-1], fst.curve("seed")[-1])
    return [
        *lines,
        "",
        "drift from the base model at the end, in nats per token: "
        f"RL {ends[0].kl_to_base:.3f}, FST {ends[1].kl_to_base:.3f}",
        f"FST's weights under the seed prompt alone: {ends[2].mean_at_k:.3f}",
    ]


def prompts(fst: Run) -> list[str]:
    """The texts of the last pool's prompts in use, each once, with their scores."""
    pool = fst.pools()[-1]
    by_id = {prompt["id"]: prompt for prompt in pool["prompts"]}
    lines = ["the prompts that were evolved, with their scores on the anchors:"]
    for each in dict.fromkeys(pool["active"]):
        scores = by_id[each]["scores"].values()
        lines.append(f"  {sum(scores) / max(len(scores), 1):.2f}  {_one_line(by_id[each]['text'])}")
    return lines


def _one_line(text: str) -> str:
    return " / ".join(text.splitlines())
