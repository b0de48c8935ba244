"""The report of a run directory full of hostile texts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest

from dpo_dist.config import ReportSection, Train
from dpo_dist.config.runfile import load_config
from dpo_dist.data.rows import write_parquet
from dpo_dist.reporting.build import build
from dpo_dist.reporting.report import FellCount, look_up
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import write_json, write_records
from dpo_dist.storage.records import Generation, Message, Prompt, Score, Verdict
from tests.report_figures import SCORES, estimate
from tests.report_run import CONFIG, manifest, run_at, write_run_directory

HOSTILE = (
    "<script>alert(1)</script> ![x](http://evil.example/x.png) \x1b[31mred \u202eabc {{ 7*7 }}"
)


AUDIT = [
    {"name": "a", "label": "Chosen is longer", **estimate(30, 0.9, 0.74, 0.97), "remedy": "look"},
    {"name": "b", "label": "Both orders agree", **estimate(47, 0.98, 0.9, 1.0), "remedy": ""},
]


CARD = [
    {
        **{"kind": "padded", "label": "Said twice is no better", "status": "accepted"},
        **{"passed": 1, "not_compared": 2, **estimate(4, 0.25, 0.05, 0.7)},
    },
    {
        **{"kind": "own", "label": "Own canaries", "status": "passed"},
        **{"passed": 8, "not_compared": 0, **estimate(8, 1.0, 0.68, 1.0)},
    },
    {
        **{"kind": "empty", "label": "Better than none", "status": "failed"},
        **{"passed": 0, "not_compared": 0, **estimate(1, 0.0)},
    },
]


def make_run(root: Path) -> None:
    """A run's directory, or that of a round."""
    dropped = {"tie": 17, "inconsistent": 1}
    counts = {
        "sample": {"in": 50, "kept": 48, "dropped": {"prompt_too_long": 2}},
        "judge": {"in": 48, "kept": 30, "dropped": dropped, "kept_inconsistent": 3},
        "train": {"in": 30, "kept": 30, "dropped": {}},
        "evaluate": {"in": 20, "kept": 20, "dropped": {}},
    }
    more = {
        "judge": {"judge": "metric:x", "audit": AUDIT, "canaries": CARD},
        "train": {
            **{"steps": 2, "selected_step": 2, "reference": "SFT"},
            "pairs": {"train": 27, "validation": 3},
        },
        "evaluate": {"judge": "metric:x"},
    }
    config = CONFIG.model_copy(update={"train": Train()})
    for phase, count in counts.items():
        figures = manifest(phase, config, counts=count, **more.get(phase, {}))
        write_json(root / phase / "manifest.json", figures)
    lines = [
        {"step": 1, "loss": 0.69, "rewards/margins": 0.0},
        {"step": 2, "loss": 0.6, "rewards/margins": 0.1, "rewards/chosen": 0.2},
        {"step": 2, "eval_loss": 0.65, "eval_rewards/margins": 0.05},
        {"step": 2, "eval_rewards/accuracies": 0.6, "eval_logps/chosen_per_token": -1.2},
        {"step": 2, "kl/per_token": 0.3, "kl/per_token_se": 0.02, "kl/sequences": 16}
        | {"kl/cut_off": 0.0},
        {"step": 2, "alarm": "kl_budget", "message": f"over the budget {HOSTILE}"},
    ]
    (root / "train" / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    validation = [{"id": f"v{number}"} for number in range(3)]
    write_parquet(root / "train" / "tokens" / "validation.parquet", validation)
    out = root / "evaluate"
    prompt = Prompt(id="p<0>", messages=(Message(role="user", content=HOSTILE),))
    write_records(out / "prompts.jsonl", [prompt])
    write_records(
        out / "generations.jsonl",
        [
            Generation(
                prompt_id="p<0>",
                arm=arm,
                decoding=0,
                text=f"{arm} {HOSTILE}",
                token_ids=(1,),
                finish_reason="stop" if arm != "base" else "length",
                engine="e",
            )
            for arm in ("base", "sft", "dpo")
        ],
    )
    score = Score(prompt_id="p<0>", arm="dpo", decoding=0, metric="m", value=1.0)
    write_records(out / "scores.jsonl", [score])
    verdict = Verdict(
        prompt_id="p<0>",
        between=("dpo", "sft"),
        outcome="preferred",
        preferred="dpo",
        other="sft",
    )
    write_records(out / "verdicts.jsonl", [verdict])
    write_json(out / "scores.json", SCORES)


@pytest.fixture
def run(write_run) -> Run:
    metrics = [{"type": "label_match", "field": "severity"}]
    config = load_config(
        write_run(
            model={"base": "m"},
            preferences={"source": "path", "path": "p.jsonl"},
            evaluate={"prompts": {"path": "e.jsonl"}, "engine": {"type": "hf"}, "metrics": metrics},
        )
    )
    make_run(Run(config).root)
    return Run(config)


@pytest.fixture
def report(run: Run, tmp_path: Path) -> Path:
    """The report's directory."""
    build(run, tmp_path / "report")
    return tmp_path / "report"


def test_no_model_text_acts_on_the_page(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1 and "<script " not in page and "<img" not in page
    # Three answers, a prompt and an alarm.
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 5
    assert "\x1b" not in page and "\u202e" not in page
    assert "␛[31m" in page and "⟨U+202E⟩" in page
    assert "{{ 7*7 }}" in page, "a template in a text is text"
    assert "p&lt;0&gt;" in page


def test_the_page_asks_nobody_for_anything(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}';" in page
    assert not re.search(r"(src|href)=[\"'](?!#)", page.replace("xlink:href", "XLINK"))
    assert "@import" not in page and "url(http" not in page


def test_the_figures_are_those_of_the_run(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    for text in ("50.0 %", "[30–70] n=20", "+25.0 pp", "[+5, +45] n=20", "temperature 0.7"):
        assert text in page
    assert "17 tie" in page and "2 prompt too long" in page
    assert "judge prefers SFT+DPO" in page and "cut off" in page
    assert '<span class="badge better">✓ Severity match</span>' in page
    assert page.count("<svg") == 6
    figures = json.loads((report / "report.json").read_text())
    assert next(iter(figures)) == "schema_version"
    assert figures["comparison"] == SCORES
    assert figures["outcome"] == SCORES["outcome"]
    assert figures["phases"]["train"] == 12.3
    assert figures["summary"][0] == "Outcome: no evidence (so it is)."
    assert "not distinguishable from chance" in figures["summary"][1]
    assert figures["summary"][2] == "Severity match rises by 25.0 points over SFT."
    assert "| Severity match | 10.0 % [3–30] n=20 |" in (report / "report.md").read_text()


def test_alarms_of_the_training_are_in_every_format(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    training = page[page.index("<h2>Training") : page.index("<h2>The judge")]
    assert "<strong>Step 2, kl budget.</strong> over the budget &lt;script&gt;" in training
    (alarm,) = json.loads((report / "report.json").read_text())["alarms"]
    assert (alarm["step"], alarm["kind"]) == (2, "kl budget")
    markdown = (report / "report.md").read_text(encoding="utf-8")
    section = markdown[markdown.index("## Alarms during training") :]
    assert "- Step 2, kl budget: over the budget \\<script\\>" in section
    assert "\\!\\[x\\](http" in section and "⟨U+202E⟩" in section and "␛" in section


def test_the_same_run_gives_the_same_page(report: Path, run: Run, tmp_path: Path) -> None:
    build(Run(load_config(tmp_path / "run.yaml")), tmp_path / "again")
    for name in ("report.html", "report.md", "report.json", "table.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (report / name).read_bytes()


def test_kept_inconsistent_pairs_are_in_every_format(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "<td>30 (3 inconsistent)</td>" in page and page.count("inconsistent)") == 1
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "judge: 48 comparisons in, 30 kept (3 inconsistent); dropped: 17 tie" in text
    found = json.loads((report / "report.json").read_text(encoding="utf-8"))["funnel"]
    assert [step.get("kept_inconsistent") for step in found] == [None, 3, None]


def test_labels_out_of_their_range_are_pointed_out(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    assert page.count("Outside the expected range") == 1
    assert "<strong>90.0 %</strong>" in page and "[74–97] n=30" in page
    markdown = (report / "report.md").read_text(encoding="utf-8")
    assert "| Both orders agree | 98.0 % [90–100] n=47 |" in markdown
    assert "- Chosen is longer: look." in markdown


def test_the_judges_card_says_what_passed_and_what_did_not(report: Path) -> None:
    assert json.loads((report / "report.json").read_text())["canaries"] == CARD
    markdown = (report / "report.md").read_text(encoding="utf-8")
    section = markdown[markdown.index("## The judge's card") :]
    for row in (
        "| Said twice is no better | 1 of 4 [5–70], 2 without a comparison | accepted |",
        "| Own canaries | 8 of 8 [68–100] | passed |",
        "| Better than none | 0 of 1 [n/a] | failed |",
    ):
        assert row in section
    page = (report / "report.html").read_text(encoding="utf-8")
    data = page[page.index("<h2>The judge") : page.index("<h2>Preference data")]
    assert "<strong>1 of 4</strong>" in data and "[5–70], 2 without a comparison" in data
    assert re.findall(r'class="(\w+)"><strong>(passed|failed|accepted)<', data) == [
        ("worse", "accepted"),
        ("better", "passed"),
        ("worse", "failed"),
    ]
    assert "was not tested with canaries" not in page + markdown


def test_a_judge_without_a_card_is_said_to_have_none(run: Run, tmp_path: Path) -> None:
    path = run.directory("judge") / "manifest.json"
    write_json(path, {**json.loads(path.read_text()), "canaries": []})
    build(run, tmp_path / "again")
    for name in ("report.html", "report.md"):
        text = (tmp_path / "again" / name).read_text(encoding="utf-8")
        assert "The judge was not tested with canaries" in text and "judge's card" not in text


@pytest.mark.parametrize(
    ("samples", "regressions", "shown", "text"),
    [
        (24, 2, 24, "All prompts are shown."),
        (3, 2, 4, "Shown are the 2 worst regressions and prompts spread evenly"),  # p0 is in both
        (3, 0, 3, "The prompts shown are spread evenly over the set."),
    ],
)
def test_the_page_says_how_its_prompts_were_chosen(
    samples: int, regressions: int, shown: int, text: str, tmp_path: Path
) -> None:
    write_run_directory(tmp_path / "run", 24)
    section = ReportSection(samples=samples, regressions=regressions)
    config = CONFIG.model_copy(update={"report": section})
    report = build(run_at(tmp_path / "run", config), tmp_path / "report").figures
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert text in page and f"<small>{shown} of 24 held-out" in page
    assert len(report.regressions.worst) == regressions
    assert report.regressions.fell == (FellCount(label="Names a severity", prompts=8),)


def test_every_sentence_of_a_whole_run_names_figures_that_are_there(tmp_path: Path) -> None:
    write_run_directory(tmp_path / "run", 24)
    build(run_at(tmp_path / "run"), tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert len(report["reflection"]) >= 7
    for sentence in report["reflection"]:
        assert sentence["figures"]
        for name in sentence["figures"]:
            look_up(report, name)
    named = {name for sentence in report["reflection"] for name in sentence["figures"]}
    markdown = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "**KL.** KL from the reference" in markdown and "<dt>KL</dt>" in page
    assert all(f"<dt><code>{name}</code></dt>" in page for name in named)
    assert {s["arm"] for s in report["ranking"]["strengths"]} == {"sft", "dpo"}, "as compared"
    assert "Strength from all verdicts" in page and "Strength from all verdicts" in markdown
    assert set(report["fingerprints"]) == {"train", "evaluate"}
    assert report["fingerprints"]["train"][:16] in page
