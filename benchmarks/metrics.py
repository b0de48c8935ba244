"""The CPU time of the metrics on the answers of three arms.

    python -m benchmarks.metrics [--quick] [--json FILE]

CPU seconds for 10,000 prompts and answers in JSON with about 100 words: for each metric alone, and
for `all` metrics together as in the evaluate phase, including the records.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.figures import option_parser, publish
from dpo_dist.config import MetricConfig
from dpo_dist.evaluation.scoring import score_answers
from dpo_dist.metrics import build_metrics
from dpo_dist.storage.records import Generation, Message, Prompt

SCHEMA = Path("recipes/incident_triage/answer.schema.json")
LABELS = ("SEV1", "SEV2", "SEV3", "SEV4")
SECTIONS = (
    {"type": "json_schema", "schema_path": SCHEMA},
    {"type": "label_match", "field": "severity", "order": LABELS},
    {"type": "faithful_quotes", "field": "evidence"},
    {"type": "regex", "pattern": "SEV[12]"},
    {"type": "exact_match", "field": "text"},
    {"type": "rouge_l", "field": "text"},
    {"type": "length"},
    {"type": "length", "unit": "characters"},
    {"type": "stop_rate"},
    {"type": "distinct_n"},
    {"type": "repetition"},
    {"type": "refusal_rate"},
)


def main() -> None:
    options = option_parser(__doc__).parse_args()
    prompts, generations = answers(100 if options.quick else 10_000)
    sections: TypeAdapter[MetricConfig] = TypeAdapter(MetricConfig)
    metrics = build_metrics([sections.validate_python(section) for section in SECTIONS])
    figures = {}
    for name, some in [(metric.key, [metric]) for metric in metrics] + [("all", metrics)]:
        started = time.process_time()
        scored = score_answers(some, prompts, generations)
        figures[f"seconds/{name}"] = time.process_time() - started
        assert len(scored.scores) == len(some) * len(generations)
    publish(figures, options.json)


def answers(n: int) -> tuple[dict[str, Prompt], list[Generation]]:
    """`n` prompts of 120 words with references of 100, and three arms' answers."""
    draw = random.Random(0)
    vocabulary = [f"word{number}" for number in range(400)]

    def text(words: int) -> str:
        return " ".join(draw.choices(vocabulary, k=words))

    def generation(arm: str, prompt: Prompt) -> Generation:
        quote = prompt.messages[0].content[:50]
        answer = {"severity": draw.choice(LABELS), "summary": text(80), "evidence": [quote]}
        return Generation(
            prompt_id=prompt.id,
            arm=arm,
            decoding=0,
            text=json.dumps(answer),
            token_ids=tuple(range(160)),
            finish_reason="stop",
            engine="synthetic",
        )

    prompts = {
        f"p{number}": Prompt(
            id=f"p{number}",
            messages=(Message(role="user", content=text(120)),),
            reference={"severity": draw.choice(LABELS), "text": text(100)},
        )
        for number in range(n)
    }
    arms = ("base", "sft", "dpo")
    return prompts, [generation(arm, prompt) for arm in arms for prompt in prompts.values()]


if __name__ == "__main__":
    main()
