import json
from collections import Counter, defaultdict

import pytest

from dpo_dist.recipes.incident_triage import catalog
from dpo_dist.recipes.incident_triage.generate import (
    FILES,
    SPLITS,
    STYLES,
    IncidentFacts,
    incidents,
    render,
    severity,
)
from tests.conftest import ROOT

DATA = ROOT / "recipes" / "incident_triage" / "data"


def shipped(split: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / FILES[split]).read_text().splitlines()]


def incident_text(row: dict) -> str:
    return row.get("messages", row.get("prompt"))[-1]["content"]


def test_the_shipped_files_are_what_the_generator_writes() -> None:
    for name, content in render().items():
        assert (DATA / name).read_text(encoding="utf-8") == content


def test_there_is_enough_and_it_is_varied() -> None:
    assert len(shipped("sft")) == 480 >= 400
    assert len(shipped("pref")) == 640 >= 500
    assert len(shipped("eval")) == len(shipped("dev")) == 160 >= 100
    drawn = [incident for rows in incidents().values() for incident in rows]
    assert len({i.service for i in drawn}) == len(catalog.SERVICES) >= 40
    assert len({i.pattern for i in drawn}) == len(catalog.PATTERNS) >= 60
    assert {i.style for i in drawn} == set(range(len(STYLES)))
    assert len(STYLES) >= 4
    assert all(i.distractors for i in drawn)


def test_no_incident_is_in_two_splits_or_twice_in_one() -> None:
    texts = [
        " ".join(incident_text(row).split()).casefold()
        for split in SPLITS
        for row in shipped(split)
    ]
    assert len(texts) == len(set(texts)) == 1448
    pairs = [(i.service, i.pattern) for rows in incidents().values() for i in rows]
    assert len(pairs) == len(set(pairs)), "no near twin either"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (IncidentFacts(1, False, True, True), "SEV1"),
        (IncidentFacts(50, True, False, False), "SEV1"),
        (IncidentFacts(49, True, False, False), "SEV2"),
        (IncidentFacts(10, True, False, False), "SEV2"),
        (IncidentFacts(9, True, False, False), "SEV3"),
        (IncidentFacts(50, False, False, False), "SEV2"),
        (IncidentFacts(49, False, False, False), "SEV3"),
        (IncidentFacts(50, True, False, True), "SEV2"),
        (IncidentFacts(9, False, False, True), "SEV4"),
    ],
)
def test_the_rules_of_severity(facts: IncidentFacts, expected: str) -> None:
    assert severity(facts) == expected


def test_the_text_states_the_facts_that_decide() -> None:
    for rows in incidents().values():
        for incident in rows:
            text, facts = incident.text(), incident.facts
            assert f"{facts.failing}% of requests fail" in text
            assert ("(public)" if facts.public else "(internal)") in text
            assert any(line in text for line in catalog.DATA_LOSSES) == facts.data
            helped = any(line in text for line in catalog.WORKAROUNDS)
            assert facts.data or helped == facts.workaround


def test_gold_answers_quote_the_incident() -> None:
    for row in shipped("sft"):
        answer = json.loads(row["completion"][0]["content"])
        assert list(answer) == ["severity", "summary", "evidence"]
        assert len(answer["evidence"]) == 2
        assert all(quote in incident_text(row) for quote in answer["evidence"])


def test_canaries_are_wrong_in_the_severity_alone() -> None:
    rows = shipped("canary")
    assert len({row["name"] for row in rows}) == len(rows) == 8
    for row in rows:
        good, bad = json.loads(row["good"]), json.loads(row["bad"])
        assert good["severity"] == row["reference"]["severity"] != bad.pop("severity")
        assert bad == {"summary": good["summary"], "evidence": good["evidence"]}


def test_severities_are_balanced_and_not_given_away_by_the_service() -> None:
    for split in ("pref", "eval", "dev"):
        counts = Counter(row["reference"]["severity"] for row in shipped(split))
        assert all(0.15 <= n / SPLITS[split] <= 0.35 for n in counts.values())
        assert len(counts) == 4
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for incident in incidents()["pref"]:
        seen[incident.service][severity(incident.facts)] += 1
    held_out = incidents()["eval"]
    right = sum(seen[i.service].most_common(1)[0][0] == severity(i.facts) for i in held_out)
    assert right / len(held_out) < 0.5
