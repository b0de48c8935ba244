"""The points of a sweep: which there are, what they are called, what cannot be swept."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError
from dpo_dist.phases.pipeline import command_of
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import write_json
from dpo_dist.tools.sweep.figures import tried_before
from dpo_dist.tools.sweep.points import plan_sweep, split_values


@pytest.fixture
def run_file(write_run) -> Path:
    metrics = [{"type": "label_match", "field": "severity"}]
    return write_run(
        model={"base": "m"},
        preferences={"source": "path", "path": "p.jsonl"},
        train={"learning_rate": 1e-5},
        evaluate={"prompts": {"path": "e.jsonl"}, "engine": {"type": "hf"}, "metrics": metrics},
    )


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.03,0.1, 0.3", ["0.03", "0.1", "0.3"]),
        ("[base, dpo]", ["[base, dpo]"]),
        ("{sigmoid: 1.0, sft: 0.2},ipo", ["{sigmoid: 1.0, sft: 0.2}", "ipo"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("'[',c", ["'['", "c"]),
        ("0.1,", ["0.1", ""]),
    ],
)
def test_values_are_cut_at_commas_that_stand_outside(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_points_are_the_product_with_names_to_read(run_file: Path) -> None:
    overrides = ["train.beta=0.1,0.3", "train.learning_rate=5.0e-6,1e-5", "train.num_epochs=2"]
    plan = plan_sweep(run_file, overrides)
    assert [point.name for point in plan.points] == [
        "beta=0.1,learning_rate=5e-06",
        "beta=0.1,learning_rate=1e-05",
        "beta=0.3,learning_rate=5e-06",
        "beta=0.3,learning_rate=1e-05",
    ]
    trained = [point.run.config.train for point in plan.points]
    assert [(t.beta, t.learning_rate, t.num_epochs) for t in trained if t is not None] == [
        (0.1, 5e-6, 2),
        (0.1, 1e-5, 2),
        (0.3, 5e-6, 2),
        (0.3, 1e-5, 2),
    ]
    assert plan.swept == ("train.beta", "train.learning_rate")
    # The overrides are what the phases' processes get: read again they are the same point.
    first = plan.points[0]
    assert Run(load_config(run_file, first.overrides), point=first.name) == first.run
    command = command_of("train", first.run, run_file, first.overrides)
    assert command[command.index("--point") + 1] == first.name
    assert [command[n + 1] for n, word in enumerate(command) if word == "--set"] == [
        *first.overrides
    ]


def test_a_value_that_is_no_number_makes_a_name_that_a_directory_may_have(run_file: Path) -> None:
    plan = plan_sweep(run_file, ["train.loss={sigmoid: 1.0, sft: 0.2},ipo"])
    assert [point.name for point in plan.points] == ["loss=sigmoid_1.0_sft_0.2", "loss=ipo"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing to sweep"),
        (["train.beta=0.1"], "nothing to sweep"),
        (["model.base=a,b"], r"model\.base cannot be swept.*one reference and one set of pairs"),
        (["run.seed=1,2"], r"run\.seed cannot be swept"),
        (["preferences.validation_fraction=0.1,0.2"], "cannot be swept"),
        (["evaluate.prompts.limit=4,8"], r"evaluate\.prompts\.limit .*same held-out prompts"),
        (["train.beta=0.1,,0.3"], "empty value between commas"),
        (["train.beta=0.1,0.10"], r"the point beta=0\.1 is listed twice"),
        (["train.beta=0.1,0.2", "train.beta=0.3,0.4"], "given twice"),
        (["train.beta=0.1,fast"], r"train\.beta: .*valid number"),
        (["train.beta=0.1,0.2", "run.point=x"], r"run\.point: unknown key"),
    ],
)
def test_what_is_no_sweep_is_refused(run_file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_sweep(run_file, overrides)


def test_points_of_earlier_sweeps_count_as_tried_where_the_prompts_were_the_same(
    run_file: Path, tmp_path: Path
) -> None:
    found = {"beta=0.1": "a", "beta=0.5": "a", "beta=0.7": "other prompts", "beta=0.9": "a"}
    for point, digest in found.items():
        folder = tmp_path / "runs" / "test" / "sweep" / point / "evaluate"
        write_json(folder / "fingerprint.json", {"inputs": {"prompts": digest}})
        if point != "beta=0.9":
            write_json(folder / "manifest.json", {})
    assert tried_before(
        plan_sweep(run_file, ["train.beta=0.1,0.3"]).base, ["beta=0.1", "beta=0.3"]
    ) == ["beta=0.5"]
