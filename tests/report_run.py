"""The part of a run's directory that the report reads, with texts that try to inject code."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import JsonValue

from dpo_dist.config import Config, Sampling
from dpo_dist.data.rows import write_parquet
from dpo_dist.evaluation.comparison import summarise
from dpo_dist.evaluation.scores import HEADLINE
from dpo_dist.metrics import build_metrics
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import write_json, write_records
from dpo_dist.storage.figures import write_figures
from dpo_dist.storage.records import Generation, Message, Prompt, Score, Verdict

HOSTILE = (
    "<script>alert(1)</script>",
    "</textarea></pre></script><script>alert(2)</script>",
    "<img src=x onerror=alert(3)> <svg onload=alert(4)>",
    "![x](http://evil.example/x.png) [y](javascript:alert(5))",
    "\x1b[31mred\x1b[0m \x00 \u202eesrever \u2066 {{ 7*7 }} {% raw %}",
    "\"'><iframe src=http://evil.example></iframe><style>body{display:none}</style>",
)
OUTCOMES = ("lost", "won", "tie", "refusal")
CONFIG = Config.model_validate(
    {
        "run": {"name": "page"},
        "model": {"base": "m"},
        "preferences": {"source": "path", "path": "p.jsonl"},
        "train": {"kl": {"budget": 0.2}},
        "evaluate": {
            "prompts": {"path": "e.jsonl"},
            "engine": {"type": "hf"},
            "metrics": [{"type": "regex", "pattern": "SEV", "label": "Names a severity"}],
        },
        "report": {"samples": 40},
    }
)


# The fields that only the manifest of this phase has.
OF_PHASE: dict[str, dict[str, JsonValue]] = {
    "sft": {},
    "sample": {"candidates": 0, "cut_off": 0, "engines": ["e"]},
    "judge": {"judge": "claude x", "spend": None, "refusals": {}, "audit": [], "canaries": []},
    "train": {
        **{"steps": 20, "selected_step": 20, "reference": "base", "processes": 1},
        **{"pairs": {"train": 90, "validation": 8}, "peak_rss_bytes": 2**30},
    },
    "evaluate": {
        **{"generations": 0, "engines": ["e"], "cut_off": 0, "judge": "claude x"},
        "judge_scores": [],
    },
    "report": {},
}


def manifest(phase: str, config: Config, **changes: JsonValue) -> dict[str, JsonValue]:
    """The manifest of a complete phase."""
    return {
        "phase": phase,
        "counts": {"in": 20, "kept": 20, "dropped": {}},
        "wall_seconds": 12.3,
        **OF_PHASE[phase],
        **{"seed": 17, "versions": {"torch": "2.13.0"}, "git": "abc", "config": config.dump()},
        **changes,
    }


def run_at(root: Path, config: Config = CONFIG) -> Run:
    """The run whose directory is `root`."""
    section = config.run.model_copy(update={"output_dir": root.parent, "name": root.name})
    return Run(config.model_copy(update={"run": section}))


def write_run_directory(root: Path, prompts: int, *, long: int = 0) -> None:
    """Write a run. Prompt i is lost, won, tied or without a verdict by i mod 4. SFT+DPO is cut off
    on every fifth prompt, and names no severity on every third, where SFT does. `long` is the
    number of additional characters of the first answer."""
    ids = [f"p{number}" for number in range(prompts)]
    asked, answers, scores, verdicts = [], [], [], []
    for number, name in enumerate(ids):
        text = HOSTILE[number % len(HOSTILE)]
        asked.append(Prompt(id=name, messages=(Message(role="user", content=f"{text} question"),)))
        named = {"base": False, "sft": True, "dpo": bool(number % 3)}
        for arm, severity in named.items():
            answer = f"answer {number} of {arm} {text} {'SEV1' if severity else 'nothing'}"
            answers.append(
                Generation(
                    prompt_id=name,
                    arm=arm,
                    decoding=0,
                    text=answer + "x" * (long if number == 0 and arm == "dpo" else 0),
                    token_ids=(1, 2),
                    finish_reason="length" if arm == "dpo" and number % 5 == 0 else "stop",
                    engine="e",
                )
            )
            key = build_metrics(CONFIG.evaluate.metrics)[0].key  # type: ignore[union-attr]
            scores.append(
                Score(prompt_id=name, arm=arm, decoding=0, metric=key, value=float(severity))
            )
        verdicts.append(_verdict(name, OUTCOMES[number % 4]))
    write_records(root / "evaluate" / "prompts.jsonl", asked)
    write_records(root / "evaluate" / "generations.jsonl", answers)
    write_records(root / "evaluate" / "scores.jsonl", scores)
    write_records(root / "evaluate" / "verdicts.jsonl", verdicts)
    lengths: dict[str, dict[str, int]] = {}
    for given in answers:
        lengths.setdefault(given.arm, {})[given.prompt_id] = len(given.text)
    assert CONFIG.evaluate is not None
    metrics = build_metrics(CONFIG.evaluate.metrics)
    decodings = [Sampling(temperature=0.0)]
    arms = ("base", "sft", "dpo")
    summary = summarise(metrics, scores, {HEADLINE: verdicts}, arms, decodings, 17, lengths=lengths)
    write_figures(root / "evaluate" / "scores.json", summary)
    counts = {"in": prompts, "kept": prompts, "dropped": {}}
    for phase in ("train", "evaluate"):
        write_json(root / phase / "manifest.json", manifest(phase, CONFIG, counts=counts))
        write_json(root / phase / "fingerprint.json", {"inputs": {"metric_files": {}}})
    validation = [{"id": f"v{number}"} for number in range(8)]
    write_parquet(root / "train" / "tokens" / "validation.parquet", validation)
    lines = [
        {"step": step, **figures}
        for step in (0, 10, 20)
        for figures in (
            {"eval_rewards/margins": 0.05 * step, "eval_rewards/accuracies": 0.8},
            {"kl/per_token": 0.02 * step, "kl/per_token_se": 0.01, "kl/cut_off": 0.0}
            | {"kl/tokens": 400.0 + step, "kl/sequences": 8.0},
        )
    ]
    alarm = {"step": 20, "alarm": "kl_budget", "message": f"over {HOSTILE[1]}"}
    text = "".join(json.dumps(line) + "\n" for line in [*lines, alarm])
    (root / "train" / "metrics.jsonl").write_text(text)


def _verdict(name: str, outcome: str) -> Verdict:
    if outcome in ("tie", "refusal"):
        return Verdict(prompt_id=name, between=HEADLINE, outcome=outcome)  # type: ignore[arg-type]
    better, worse = ("dpo", "sft") if outcome == "won" else ("sft", "dpo")
    return Verdict(
        prompt_id=name, between=HEADLINE, outcome="preferred", preferred=better, other=worse
    )
