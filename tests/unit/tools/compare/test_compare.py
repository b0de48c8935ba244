"""Runs side by side: what differs, and dpo against dpo on the same prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_dist.cli import main
from dpo_dist.config import Config, Sampling
from dpo_dist.config.runfile import load_config
from dpo_dist.data.rows import write_parquet
from dpo_dist.errors import DataError, UserError
from dpo_dist.evaluation.comparison import summarise
from dpo_dist.evaluation.significance import paired_difference
from dpo_dist.metrics import Metric
from dpo_dist.runs.finished import find_run
from dpo_dist.storage.artifacts import write_json, write_records
from dpo_dist.storage.figures import write_figures
from dpo_dist.storage.records import Message, Prompt, Score, Verdict
from dpo_dist.tools.compare.runs import compare_runs, differing
from tests.report_run import manifest

N = 12
GREEDY = {"temperature": 0.0, "top_p": 1.0, "max_tokens": None}


@pytest.fixture
def make_run(tmp_path: Path, write_run):
    """A finished run as the phases leave one, with given values of dpo's answers."""

    def make(
        name: str,
        dpo: list[float],
        *,
        beta: float = 0.1,
        decodings: tuple[dict[str, Any], ...] = (GREEDY,),
        question: str = "question",
        schema: str = "digest",
        metric: dict[str, str] | None = None,
        wins: int | None = None,
        versions: dict[str, str] | None = None,
    ) -> Path:
        (tmp_path / "schema.json").write_text("{}")
        section = metric or {"type": "json_schema", "schema_path": "schema.json"}
        config = load_config(
            write_run(
                run={"name": name, "output_dir": str(tmp_path / "runs")},
                model={"base": "m", "sft": "path/to/sft"},
                preferences={"source": "path", "path": "p.jsonl"},
                train={"beta": beta},
                evaluate={
                    "prompts": {"path": "e.jsonl"},
                    "engine": {"type": "hf"},
                    "arms": ["sft", "dpo"],
                    "decodings": list(decodings),
                    "metrics": [{**section, "label": "Format"}],
                },
            )
        )
        used = {"torch": "2.13.0", **(versions or {})}
        root = tmp_path / "runs" / name
        write_training(root / "train", config, used)
        verdicts = None if wins is None else [verdict(n, n < wins) for n in range(N)]
        scores = [
            Score(prompt_id=f"p{n}", arm=arm, decoding=number, metric="json_schema", value=value)
            for number in range(len(decodings))
            for arm, values in (("sft", [0.0] * N), ("dpo", dpo))
            for n, value in enumerate(values)
        ]
        out = root / "evaluate"
        scored_by = Metric("json_schema", "Format", lambda prompt, answer: 0.0)
        arms = ("sft", "dpo")
        given = None if verdicts is None else {("dpo", "sft"): verdicts}
        sampled = [Sampling.model_validate(decoding) for decoding in decodings]
        scored = summarise([scored_by], scores, given, arms, sampled, seed=17)
        write_figures(out / "scores.json", scored)
        write_records(out / "scores.jsonl", scores)
        write_records(out / "verdicts.jsonl", verdicts or [])
        write_records(out / "prompts.jsonl", (prompt(n, question) for n in range(N)))
        fingerprint = {
            "inputs": {"metric_files": dict.fromkeys(("schema.json", "gone:score"), schema)}
        }
        write_json(out / "fingerprint.json", fingerprint)
        judge = None if wins is None else "claude:m:1"
        spend = {"usd": 1.5, "usage": {"attempts": 24}}
        evaluated = manifest("evaluate", config, versions=used, judge=judge, spend=spend)
        write_json(out / "manifest.json", evaluated)
        return root

    return make


def write_training(train: Path, config: Config, versions: dict[str, str]) -> None:
    rows = [{"id": f"v{n // 2}"} for n in range(8)]  # two pairs a prompt
    write_parquet(train / "tokens" / "validation.parquet", rows)
    lines = [
        {"step": 5, "loss": 0.6},
        {"step": 5, "eval_loss": 0.62, "eval_rewards/accuracies": 0.5},
        {"step": 10, "loss": 0.5},
        {"step": 10, "eval_loss": 0.61, "eval_rewards/accuracies": 0.75},
        {"step": 10, "eval_rewards/margins": 0.3},
        {"step": 10, "kl/per_token": 0.04, "kl/per_token_se": 0.01, "kl/sequences": 16.0}
        | {"kl/cut_off": 0.5},
        {"step": 12, "eval_loss": 9.9, "eval_rewards/accuracies": 0.0},
    ]
    (train / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(train / "fingerprint.json", {"inputs": {}})
    done = {"steps": 12, "selected_step": 10, "reference": "SFT"}
    write_json(train / "manifest.json", manifest("train", config, versions=versions, **done))


def prompt(number: int, question: str) -> Prompt:
    return Prompt(id=f"p{number}", messages=(Message(role="user", content=f"{question} {number}"),))


def verdict(number: int, won: bool) -> Verdict:
    preferred, other = ("dpo", "sft") if won else ("sft", "dpo")
    return Verdict(
        prompt_id=f"p{number}",
        between=("dpo", "sft"),
        outcome="preferred",
        preferred=preferred,
        other=other,
    )


A_VALUES = [1.0] * 9 + [0.0] * 3
B_VALUES = [0.0] * 4 + [1.0] * 4 + [0.0] * 4


def test_what_differs_is_shown_and_nothing_else(make_run) -> None:
    a = make_run("a", A_VALUES, beta=0.1)
    b = make_run("b", B_VALUES, beta=0.3, versions={"torch": "2.14.0", "vllm": "0.33.0"})
    figures = compare_runs([a, b])
    assert figures.runs == {"A": str(a), "B": str(b)}
    assert figures.settings == {"train.beta": (0.1, 0.3)}
    assert figures.versions == {"torch": ("2.13.0", "2.14.0"), "vllm": (None, "0.33.0")}
    assert differing([{"x": None}, {}]) == {}


def test_dpo_against_dpo_is_paired_by_prompt(make_run) -> None:
    a, b = make_run("a", A_VALUES, wins=9), make_run("b", B_VALUES, wins=3)
    (pair,) = compare_runs([a, b]).paired
    assert (pair.a, pair.b, pair.why_not, pair.left_out) == ("A", "B", None, ())
    rows = {row.label: row for row in pair.rows}
    ids = [f"p{n}" for n in range(N)]
    expected = paired_difference(
        dict(zip(ids, A_VALUES, strict=True)), dict(zip(ids, B_VALUES, strict=True)), 17
    )
    assert rows["Format"].mean == pytest.approx(5 / 12)
    assert (rows["Format"].low, rows["Format"].high) == (expected.low, expected.high)
    assert rows["Preferred over its SFT (judge)"].mean == pytest.approx(0.5)
    assert rows["Preferred over its SFT (judge)"].n == N


def test_training_figures_are_those_of_the_selected_step(make_run) -> None:
    a, b = make_run("a", A_VALUES), make_run("b", B_VALUES)
    training = compare_runs([a, b]).training[0]
    assert training is not None and training.accuracy is not None and training.kl is not None
    assert (training.steps, training.selected_step, training.loss) == (12, 10, 0.5)
    assert training.validation_loss == 0.61, "not that of a step which was given up"
    # Eight pairs of four prompts: 3 of 4, Wilson's interval.
    accuracy = training.accuracy
    assert (accuracy.n, accuracy.mean) == (4, 0.75)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert training.reference == "SFT"
    assert (training.kl.per_token, training.kl.step) == (0.04, 10)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"question": "another"}, "different prompts (12 and 12, 0 in common)"),
        ({"decodings": ({**GREEDY, "temperature": 0.7},)}, "share no decoding settings"),
        ({"decodings": ({**GREEDY, "max_tokens": 7},)}, "share no decoding settings"),
    ],
)
def test_other_prompts_or_decodings_cannot_be_paired(
    make_run, capsys, other: dict[str, Any], reason: str
) -> None:
    a, b = make_run("a", A_VALUES), make_run("b", B_VALUES, **other)
    (pair,) = compare_runs([a, b]).paired
    assert pair.why_not is not None and reason in pair.why_not and pair.rows == ()
    assert main(["compare", str(a), str(b)]) == 0
    assert f"cannot be paired: {pair.why_not}" in capsys.readouterr().out


def test_decodings_are_found_wherever_they_stand(make_run) -> None:
    warm = {**GREEDY, "temperature": 0.7}
    a = make_run("a", A_VALUES, decodings=(GREEDY, warm))
    b = make_run("b", B_VALUES, decodings=(warm,))
    (pair,) = compare_runs([a, b]).paired
    assert [(row.label, row.decoding) for row in pair.rows] == [("Format", 1)]


def test_a_metric_with_another_schema_is_not_the_same_metric(make_run, capsys) -> None:
    a, b = make_run("a", A_VALUES), make_run("b", B_VALUES, schema="another digest")
    (pair,) = compare_runs([a, b]).paired
    assert pair.left_out == ("Format",) and pair.rows == ()
    assert main(["compare", str(a), str(b)]) == 0
    assert "measured differently: Format" in capsys.readouterr().out


def test_a_metric_of_the_user_s_own_is_compared_without_its_module(make_run) -> None:
    own = {"type": "function", "path": "gone:score"}
    a, b = make_run("a", A_VALUES, metric=own), make_run("b", B_VALUES, metric=own)
    assert [row.label for row in compare_runs([a, b]).paired[0].rows] == ["Format"]
    other = make_run("c", B_VALUES, metric=own, schema="another digest")
    assert compare_runs([a, other]).paired[0].left_out == ("Format",)


def test_what_is_no_finished_run_is_named(make_run, tmp_path: Path, capsys) -> None:
    a, b = make_run("a", A_VALUES), make_run("b", B_VALUES)
    (b / "evaluate" / "manifest.json").unlink()
    assert main(["compare", str(a), str(b)]) == 2
    said = capsys.readouterr().err
    assert f"{b} is not finished" in said and f"{b / 'evaluate'} (was interrupted)" in said
    (b / "evaluate" / "fingerprint.json").unlink()
    with pytest.raises(DataError, match=r"evaluate \(was not run\)"):
        find_run(b)
    with pytest.raises(DataError, match="is not a run"):
        find_run(tmp_path)
    with pytest.raises(DataError, match="no such file or directory"):
        find_run(tmp_path / "absent")
    with pytest.raises(UserError, match="given twice"):
        compare_runs([a, a.parent / "." / "a"])
    with pytest.raises(UserError, match="2 to 26 runs"):
        compare_runs([a])


def test_a_run_file_stands_for_its_run(make_run, tmp_path: Path) -> None:
    root = make_run("a", A_VALUES)
    assert find_run(tmp_path / "run.yaml").root == root


def test_a_point_of_a_sweep_has_the_other_phases_of_its_run(make_run, tmp_path: Path) -> None:
    point = make_run("a", A_VALUES)
    moved = tmp_path / "runs" / "base" / "sweep" / "beta=0.1"
    moved.parent.mkdir(parents=True)
    point.rename(moved)
    sft = tmp_path / "runs" / "base" / "sft"
    write_json(sft / "fingerprint.json", {})
    write_json(sft / "manifest.json", manifest("sft", load_config(tmp_path / "run.yaml")))
    found = find_run(moved)
    assert set(found.folders) == {"sft", "train", "evaluate"}
    assert found.folders["sft"] == sft


def test_the_text_fits_a_terminal_and_the_files_are_written(
    make_run, tmp_path: Path, capsys
) -> None:
    betas = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.5}
    runs = [str(make_run(name, A_VALUES, beta=beta, wins=9)) for name, beta in betas.items()]
    files = ["--json", str(tmp_path / "c.json"), "--html", str(tmp_path / "c.html")]
    assert main(["compare", *runs, *files]) == 0
    said = capsys.readouterr().out
    _, _, text = said.partition("\n\n")  # below the paths, which are as long as they are
    assert max(map(len, text.splitlines())) <= 100
    assert "train.beta" in text and "SFT+DPO of A minus SFT+DPO of E, paired by prompt" in text
    assert "75.0 % [47–91] n=12" in text and "$1.50, 24 requests" in text
    written = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert written["settings"]["train.beta"] == list(betas.values())
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "5 runs side by side" in page and "Judges" in page and "<script" not in page
