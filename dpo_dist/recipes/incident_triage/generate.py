"""Generate the incidents of the demo.

    python -m dpo_dist.recipes.incident_triage.generate [FOLDER]

The facts of an incident (share of failing requests, customers affected, ...) are drawn at random.
Its text states them among distractors. The gold severity follows from the facts alone, by the rules
of `severity`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_dist.recipes.incident_triage import catalog

SEED = 17
SPLITS = {"sft": 480, "pref": 640, "eval": 160, "canary": 8, "dev": 160}
FILES = {
    "sft": "sft.jsonl",
    "pref": "prompts.jsonl",
    "eval": "eval.jsonl",
    "canary": "canaries.jsonl",
    "dev": "dev.jsonl",
}

INSTRUCTION = (
    'Triage the incident as JSON: "severity", "summary", "evidence" (exact quotes). SEV1: data '
    "lost or exposed, or public and 50% failing. SEV2: public and 10%, or internal and 50%. "
    "SEV3: less. A workaround lowers it by one, but not for data; SEV4 is the lowest."
)


@dataclass(frozen=True)
class IncidentFacts:
    """The facts that determine an incident's severity.

    `failing` is the share of requests that fail, in percent; `public` whether customers use
    the service (otherwise it is internal).
    """

    failing: int
    public: bool
    data: bool
    workaround: bool


@dataclass(frozen=True)
class Incident:
    """The facts and the parts of the text."""

    facts: IncidentFacts
    service: str
    pattern: tuple[str, str]
    outcome: str
    distractors: tuple[str, ...]
    reporter: str
    style: int

    @property
    def impact(self) -> str:
        """The line with the share of failing requests and the users of the service."""
        tier = "public" if self.facts.public else "internal"
        return f"{self.service} ({tier}): {self.facts.failing}% of requests fail"

    def text(self) -> str:
        return STYLES[self.style](self)

    def answer(self, level: str) -> str:
        """An answer with the severity `level`, as JSON with the keys in the instruction's order.
        With the gold severity it is the gold answer; otherwise only the severity is wrong."""
        share = f"{self.facts.failing}% of requests fail"
        return json.dumps(
            {
                "severity": level,
                "summary": f"{self.service} suffers from {self.pattern[1]}.",
                "evidence": [share, self.outcome],
            }
        )


def severity(facts: IncidentFacts) -> str:
    """The severity by the rules of the instruction.

    - Data lost or exposed: SEV1 in any case.
    - Public: SEV1 from 50 % failing requests, SEV2 from 10 %, SEV3 below.
    - Internal: SEV2 from 50 %, SEV3 below.
    - A workaround lowers the severity by one step; SEV4 is the lowest.
    """
    if facts.data:
        return "SEV1"
    if facts.public:
        level = 1 if facts.failing >= 50 else 2 if facts.failing >= 10 else 3
    else:
        level = 2 if facts.failing >= 50 else 3
    return f"SEV{min(4, level + facts.workaround)}"


def _pager(incident: Incident) -> str:
    lines = [
        f"[ALERT] {incident.impact}",
        f"[LOG] ERROR {incident.service}: {incident.pattern[0]}",
        *(f"[LOG] INFO {line}" for line in incident.distractors),
        f"[REPORT] {incident.reporter}: {incident.outcome}",
    ]
    return "\n".join(lines)


def _ticket(incident: Incident) -> str:
    first, *rest = incident.distractors
    return "\n".join(
        [
            f"Ticket from {incident.reporter}",
            f'"It is broken again, {incident.outcome}."',
            f"Monitoring: {first}",
            f"Monitoring: {incident.impact}",
            *(f"Monitoring: {line}" for line in rest),
            f"Log: {incident.pattern[0]}",
        ]
    )


def _chat(incident: Incident) -> str:
    return "\n".join(
        [
            f"{incident.reporter}: anyone looking at {incident.service}? {incident.pattern[0]}",
            f"bot: {incident.impact}",
            *(f"bot: {line}" for line in incident.distractors),
            f"{incident.reporter}: {incident.outcome}",
        ]
    )


def _bullets(incident: Incident) -> str:
    lines = [*incident.distractors, incident.impact, f"seen: {incident.pattern[0]}"]
    return "\n".join(
        f"- {line}" for line in [*lines, f"{incident.reporter} says {incident.outcome}"]
    )


def _mail(incident: Incident) -> str:
    return "\n".join(
        [
            f"Subject: {incident.service} trouble",
            f"Hello, {incident.outcome}. The log has: {incident.pattern[0]}.",
            *(f"> {line}" for line in incident.distractors),
            f"> {incident.impact}",
            f"Regards, {incident.reporter}",
        ]
    )


STYLES: tuple[Callable[[Incident], str], ...] = (_pager, _ticket, _chat, _bullets, _mail)


def draw(random_: random.Random) -> Incident:
    """Draw an incident. The severity is drawn first, then facts that lead to it, so that all four
    severities are equally frequent; half of the shares are near a threshold."""
    wanted = f"SEV{random_.randint(1, 4)}"
    facts = _facts(random_)
    while severity(facts) != wanted:
        facts = _facts(random_)
    if facts.data:
        outcome = random_.choice(catalog.DATA_LOSSES)
    else:
        outcome = random_.choice(
            catalog.WORKAROUNDS if facts.workaround else catalog.NO_WORKAROUNDS
        )
    service, *others = random_.sample(catalog.SERVICES, 3)
    distractors = tuple(
        random_.choice(catalog.DISTRACTORS).format(other=other, n=random_.randint(2, 97))
        for other in others[: random_.randint(1, 2)]
    )
    return Incident(
        facts=facts,
        service=service,
        pattern=random_.choice(catalog.PATTERNS),
        outcome=outcome,
        distractors=distractors,
        reporter=random_.choice(catalog.REPORTERS),
        style=random_.randrange(len(STYLES)),
    )


def _facts(random_: random.Random) -> IncidentFacts:
    near = random_.choice((random_.randint(5, 15), random_.randint(44, 56)))
    return IncidentFacts(
        failing=random_.choice((near, random_.randint(1, 99))),
        public=random_.random() < 0.6,
        data=random_.random() < 0.15,
        workaround=random_.random() < 0.45,
    )


def incidents(seed: int = SEED) -> dict[str, list[Incident]]:
    """The incidents of every split. No pair of service and pattern occurs twice, so that no two
    splits have similar incidents."""
    random_ = random.Random(seed)
    seen: set[tuple[str, str]] = set()
    splits: dict[str, list[Incident]] = {}
    for split, count in SPLITS.items():
        rows: list[Incident] = []
        while len(rows) < count:
            incident = draw(random_)
            key = (incident.service, incident.pattern[0])
            if key not in seen:
                seen.add(key)
                rows.append(incident)
        splits[split] = rows
    return splits


def row(split: str, number: int, incident: Incident) -> dict[str, Any]:
    """An incident as a line of its file."""
    messages = [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": incident.text()},
    ]
    identifier = f"{split}-{number:04d}"
    gold = severity(incident.facts)
    if split == "sft":
        completion = [{"role": "assistant", "content": incident.answer(gold)}]
        return {"id": identifier, "prompt": messages, "completion": completion}
    reference = {"severity": gold}
    if split == "canary":
        return {
            "name": f"wrong-severity-{number}",
            "prompt": messages,
            "good": incident.answer(gold),
            "bad": incident.answer(f"SEV{int(gold[-1]) % 4 + 1}"),
            "reference": reference,
        }
    return {"id": identifier, "messages": messages, "reference": reference}


def render(seed: int = SEED) -> dict[str, str]:
    """The content of every file, by its name."""
    return {
        FILES[split]: "".join(
            json.dumps(row(split, number, incident)) + "\n"
            for number, incident in enumerate(rows, start=1)
        )
        for split, rows in incidents(seed).items()
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in render().items():
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data")
