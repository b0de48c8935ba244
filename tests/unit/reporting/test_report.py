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
from dpo_dist.reporting.build import build, funnel, summary
from dpo_dist.reporting.plots import training_plots
from dpo_dist.reporting.sentence import look_up
from dpo_dist.reporting.tables import (
    comparison_table,
    decoding_name,
    score_badge,
    to_markdown,
    to_text,
)
from dpo_dist.reporting.text import visible
from dpo_dist.reporting.training import alarms
from dpo_dist.storage.artifacts import write_json, write_records
from dpo_dist.storage.records import Generation, Message, Prompt, Score, Verdict
from tests.report_run import CONFIG, write_run_directory

HOSTILE = (
    "<script>alert(1)</script> ![x](http://evil.example/x.png) \x1b[31mred \u202eabc {{ 7*7 }}"
)


def estimate(n: int, mean: float, low: float, high: float) -> dict:
    return {"n": n, "mean": mean, "low": low, "high": high}


SCORES = {
    "decodings": [{"temperature": 0.7, "top_p": 1.0}, {"temperature": 0.0, "top_p": 1.0}],
    "arms": ["base", "sft", "dpo"],
    "metrics": [
        {
            "metric": "m",
            "label": "Severity match",
            "unit": "share",
            "better": "higher",
            "judged": False,
            "decoding": decoding,
            "arms": {
                "base": estimate(20, 0.1, 0.03, 0.3),
                "sft": estimate(20, 0.25, 0.11, 0.47),
                "dpo": estimate(20, 0.5, 0.3, 0.7),
            },
            "delta": estimate(20, 0.25, 0.05, 0.45),
            "missing": {},
        }
        for decoding in (0, 1)
    ],
    "preferred": {
        "decoding": 0,
        **estimate(20, 0.55, 0.4, 0.7),
        "wins": 8,
        "losses": 6,
        "ties": 4,
        "inconsistent": 2,
        "missing": {},
        "worst": 0.55,
        "best": 0.55,
        "p": 0.26,
        "p_holm": 0.79,
        "detectable": 0.31,
        "length_controlled": None,
    },
    "pairwise": [],
    "ranking": None,
    "length": {
        "unit": "characters",
        "arms": {"sft": estimate(20, 200, 180, 220)},
        "delta": estimate(20, 4, -3, 11),
    },
    "outcome": {"outcome": "no_evidence", "reasons": ["so it is"], "guarded": ["Severity match"]},
}
TRAINED = {
    "steps": 2,
    "selected_step": 2,
    "pairs": {"train": 27, "validation": 3},
    "reference": "SFT",
    "processes": 1,
    "peak_rss_bytes": 2**30,
    "config": {"train": Train().model_dump(mode="json")},
}


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
        **{"passed": 0, "not_compared": 0, "n": 1, "mean": 0.0, "low": None, "high": None},
    },
]


def make_run(root: Path) -> None:
    dropped = {"tie": 17, "inconsistent": 1}
    counts = {
        "sample": {"in": 50, "kept": 48, "dropped": {"prompt_too_long": 2}},
        "judge": {"in": 48, "kept": 30, "dropped": dropped, "kept_inconsistent": 3},
        "train": {"in": 30, "kept": 30, "dropped": {}},
        "evaluate": {"in": 20, "kept": 20, "dropped": {}},
    }
    for phase, count in counts.items():
        manifest = {"counts": count, "wall_seconds": 12.3, "judge": "metric:x"}
        manifest |= {"versions": {"torch": "2.13.0"}, "git": "abc"}
        if phase == "judge":
            manifest |= {"audit": AUDIT, "canaries": CARD}
        if phase == "train":
            manifest |= TRAINED
        write_json(root / phase / "manifest.json", manifest)
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
def report(tmp_path: Path, write_run) -> Path:
    """The report's directory."""
    metrics = [{"type": "label_match", "field": "severity"}]
    config = load_config(
        write_run(
            model={"base": "m"},
            preferences={"source": "path", "path": "p.jsonl"},
            evaluate={"prompts": {"path": "e.jsonl"}, "engine": {"type": "hf"}, "metrics": metrics},
        )
    )
    make_run(tmp_path / "run")
    build(config, tmp_path / "run", tmp_path / "report")
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


def test_a_training_without_alarms_says_nothing_of_them() -> None:
    assert alarms([{"step": 1, "loss": 0.6}]) == []


def test_the_kl_has_its_band_and_its_budget() -> None:
    lines = [
        {"step": step, "kl/per_token": 0.1 * step, "kl/per_token_se": 0.02} for step in (10, 20, 30)
    ]
    ((title, with_budget),) = training_plots(lines, kl_budget=0.25)
    assert title.startswith("KL from the reference")
    assert "budget 0.25" in with_budget and "95 % interval" in with_budget
    assert "FillBetweenPolyCollection" in with_budget
    ((_, without),) = training_plots(lines)
    assert "budget" not in without
    bare = [{k: v for k, v in line.items() if not k.endswith("_se")} for line in lines]
    ((_, no_band),) = training_plots(bare)
    assert "FillBetweenPolyCollection" not in no_band
    # The budget belongs to the KL, whatever else is drawn.
    plots = dict(training_plots([*lines, {"step": 30, "loss": 0.6}], kl_budget=0.25))
    assert "budget" not in plots["DPO loss"]


def test_all_plots_share_their_steps() -> None:
    """Validation is measured from step 40 on; its plot begins at step 1 like the others."""
    lines = [{"step": step, "loss": 0.6} for step in range(1, 101)]
    late = [{"step": step, "eval_logps/chosen_per_token": -1.0} for step in (40, 100)]
    plots = training_plots([*lines, *late])
    first, second = (
        re.findall(r">(\d+)</text>", svg[svg.index("axis_1") : svg.index("axis_2")])
        for _, svg in plots
    )
    assert first == second and int(first[0]) < 40


def test_the_same_run_gives_the_same_page(report: Path, tmp_path: Path, write_run) -> None:
    config = load_config(
        write_run(
            model={"base": "m"},
            preferences={"source": "path", "path": "p.jsonl"},
            evaluate={
                "prompts": {"path": "e.jsonl"},
                "engine": {"type": "hf"},
                "metrics": [{"type": "label_match", "field": "severity"}],
            },
        )
    )
    build(config, tmp_path / "run", tmp_path / "again")
    for name in ("report.html", "report.md", "report.json", "table.txt"):
        assert (tmp_path / "again" / name).read_bytes() == (report / name).read_bytes()


def test_the_table_names_the_preference_and_its_distance_from_half() -> None:
    table = comparison_table(SCORES)
    label, cells = table.rows[-1]
    assert label == "Preferred (judge, pairwise vs SFT)"
    assert [str(cell) for cell in cells] == [
        "–",
        "–",
        "55.0 % [40–70] n=20",
        "+5.0 pp [-10, +20] n=20 p=0.79",
    ]
    assert cells[-1].tone == "" and table.rows[0][1][-1].tone == "better"
    assert len(comparison_table(SCORES, 1).rows) == 1
    lines = to_text(table).splitlines()
    assert lines[0].startswith("Metric") and "Δ DPO over SFT" in lines[0]
    assert to_markdown(table).count("\n") == 4


def test_the_outcome_and_the_rate_at_equal_lengths_are_shown() -> None:
    scores = json.loads(json.dumps(SCORES))
    scores["preferred"]["length_controlled"] = estimate(19, 0.5, 0.35, 0.65)
    label, cells = comparison_table(scores).rows[-1]
    assert label == "Preferred, at equal lengths"
    assert [str(c) for c in cells[2:]] == ["50.0 % [35–65] n=19", "+0.0 pp [-15, +15] n=19"]
    scores["preferred"]["length_controlled"] |= {"mean": None, "low": None, "high": None}
    assert [str(c) for c in comparison_table(scores).rows[-1][1][2:]] == ["n/a n=19", "–"]
    scores["outcome"] = {"outcome": "no_evidence", "reasons": ["this", "that"], "guarded": []}
    assert summary(scores)[0] == "Outcome: no evidence (this; that)."


def test_points_are_no_percentages() -> None:
    scored = json.loads(json.dumps(SCORES))
    scored["metrics"][0] |= {
        "unit": "points",
        "label": "Judge score",
        "arms": {"base": estimate(20, 1, 1, 1), "sft": estimate(20, 3, 2.6, 3.4)}
        | {"dpo": {"n": 20, "mean": 3.5, "low": None, "high": None}},
        "delta": estimate(20, 0.5, 0.1, 0.9),
    }
    assert [str(cell) for cell in comparison_table(scored).rows[0][1]] == [
        "1.00 [1.0–1.0] n=20",
        "3.00 [2.6–3.4] n=20",
        "3.50 [n/a] n=20",
        "+0.50 [+0.10, +0.90] n=20",
    ]
    assert "Judge score rises by 0.50 points over SFT." in summary(scored)


def with_row(**changes: object) -> dict:
    """The scores with another first row."""
    scores = json.loads(json.dumps(SCORES))
    scores["metrics"][0] |= changes
    return scores


@pytest.mark.parametrize(
    ("better", "tone", "verdict"),
    [("higher", "better", "."), ("lower", "worse", ", which is worse."), (None, "", ".")],
)
def test_a_rise_is_better_only_where_the_metric_says_so(
    better: str | None, tone: str, verdict: str
) -> None:
    scores = with_row(better=better)
    assert comparison_table(scores).rows[0][1][-1].tone == tone
    assert summary(scores)[2] == f"Severity match rises by 25.0 points over SFT{verdict}"
    falls = with_row(better=better, delta=estimate(20, -0.25, -0.45, -0.05))
    opposite = {"better": "worse", "worse": "better", "": ""}[tone]
    assert comparison_table(falls).rows[0][1][-1].tone == opposite


def test_lengths_and_kappas_are_no_percentages() -> None:
    arms = dict.fromkeys(("base", "sft"), estimate(20, 81.25, 70.123, 90.5))
    arms["dpo"] = estimate(20, 0.5, 0.25, 0.75)
    row = {"arms": arms, "delta": estimate(20, 12.5, 3.25, 21.75), "better": None}
    tokens = with_row(unit="tokens", label="Length", **row)
    assert [str(cell) for cell in comparison_table(tokens).rows[0][1]][1:] == [
        "81.25 [70.1–90.5] n=20",
        "0.50 [0.2–0.8] n=20",
        "+12.50 [+3.25, +21.75] n=20",
    ]
    assert summary(tokens)[2] == "Length rises by 12.50 tokens over SFT."
    kappa = with_row(unit="kappa", label="Kappa", **row)
    assert str(comparison_table(kappa).rows[0][1][2]) == "0.50 [0.25–0.75] n=20"
    assert summary(kappa)[2] == "Kappa rises by 12.50 over SFT."


def test_what_was_not_scored_stands_behind_n() -> None:
    nothing = {"n": 0, "mean": None, "low": None, "high": None}
    scores = with_row(
        arms={**SCORES["metrics"][0]["arms"], "base": nothing},
        missing={"base": {"no_reference": 20}, "dpo": {"failed": 2, "too_short": 1}},
    )
    base, sft, dpo, _ = comparison_table(scores).rows[0][1]
    assert (base.value, base.detail) == ("n/a", "n=0 (20 no reference)")
    assert sft.detail == "[11–47] n=20" and dpo.detail == "[30–70] n=20 (2 failed, 1 too short)"


@pytest.mark.parametrize(
    ("row", "value", "text", "tone"),
    [
        ({"unit": "share"}, 1.0, "✓ M", "better"),
        ({"unit": "share", "better": "higher"}, 0.0, "✗ M", "worse"),
        ({"unit": "share", "better": "lower"}, 1.0, "✓ M", "worse"),
        ({"unit": "share", "better": "lower"}, 0.0, "✗ M", "better"),
        ({"unit": "share", "better": None}, 1.0, "✓ M", ""),
        ({"unit": "share"}, 0.5, "0.50 M", ""),
        ({"unit": "points"}, 4.0, "4 M", ""),
        ({"unit": "tokens", "better": None}, 83.0, "83 tokens M", ""),
    ],
)
def test_an_answer_s_badge(row: dict, value: float, text: str, tone: str) -> None:
    badge = score_badge({"label": "M", "better": "higher", **row}, value)
    assert (str(badge), badge.tone) == (text, tone)


def test_no_interval_is_said_not_invented() -> None:
    lonely = json.loads(json.dumps(SCORES))
    row = lonely["metrics"][0]
    row["arms"]["dpo"] = {"n": 1, "mean": 1.0, "low": None, "high": None}
    row["delta"] = {"n": 0, "mean": None, "low": None, "high": None}
    cells = comparison_table(lonely).rows[0][1]
    assert str(cells[2]) == "100.0 % [n/a] n=1" and str(cells[3]) == "–"


def test_a_funnel_that_does_not_add_up_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="judge leaks"):
        funnel({"judge": {"counts": {"in": 3, "kept": 1, "dropped": {"tie": 1}}}})


def test_kept_inconsistent_pairs_are_in_every_format(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "<td>30 (3 inconsistent)</td>" in page and page.count("inconsistent)") == 1
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "judge: 48 comparisons in, 30 kept (3 inconsistent); dropped: 17 tie" in text
    found = json.loads((report / "report.json").read_text(encoding="utf-8"))["funnel"]
    assert [step.get("kept_inconsistent") for step in found] == [None, 3, None]


def test_control_and_direction_characters_are_shown() -> None:
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("\x1b[0m\x00\x7f\u200f\ud800") == "␛[0m␀⟨U+007F⟩⟨U+200F⟩⟨U+D800⟩"
    assert visible("👩\u200d🚀 שלום") == "👩\u200d🚀 שלום"


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


def test_a_judge_without_a_card_is_said_to_have_none(report: Path, tmp_path: Path) -> None:
    path = tmp_path / "run" / "judge" / "manifest.json"
    write_json(path, {**json.loads(path.read_text()), "canaries": []})
    build(load_config(tmp_path / "run.yaml"), tmp_path / "run", tmp_path / "again")
    for name in ("report.html", "report.md"):
        text = (tmp_path / "again" / name).read_text(encoding="utf-8")
        assert "The judge was not tested with canaries" in text and "judge's card" not in text


@pytest.mark.parametrize(
    ("decoding", "name"),
    [
        ({"temperature": 0.0, "top_p": 0.5, "top_k": 3}, "greedy"),
        ({"temperature": 0.7, "top_p": 1.0}, "temperature 0.7"),
        ({"temperature": 0.7, "top_p": 0.9}, "temperature 0.7, top-p 0.9"),
        (
            {"temperature": 1.2, "top_p": 0.9, "top_k": 40, "min_p": 0.05},
            "temperature 1.2, top-p 0.9, top-k 40, min-p 0.05",
        ),
        ({"temperature": 1.2, "top_p": 1.0, "min_p": 0.05}, "temperature 1.2, min-p 0.05"),
    ],
)
def test_a_decoding_is_named_by_what_is_on(decoding: dict[str, float], name: str) -> None:
    assert decoding_name(decoding) == name


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
    write_run_directory(tmp_path, 24)
    section = ReportSection(samples=samples, regressions=regressions)
    config = CONFIG.model_copy(update={"report": section})
    report = build(config, tmp_path, tmp_path / "report").figures
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert text in page and f"<small>{shown} of 24 held-out" in page
    assert len(report["regressions"]["worst"]) == regressions
    assert report["regressions"]["fell"] == [{"label": "Names a severity", "prompts": 8}]


def test_every_sentence_of_a_whole_run_names_figures_that_are_there(tmp_path: Path) -> None:
    write_run_directory(tmp_path, 24)
    build(CONFIG, tmp_path, tmp_path / "report")
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
