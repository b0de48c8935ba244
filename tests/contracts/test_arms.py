"""The arms that a run file may name: what is taken, and what is refused with which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError, DataError, ModelError, UserError
from dpo_dist.runs.arms import arms_of, check_arms
from dpo_dist.runs.run import Run
from dpo_dist.storage.records import Message, Prompt

EXAMPLE = {"prompt": "2 + 2", "completion": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}
Load = Callable[..., Run]


@pytest.fixture
def load(tmp_path: Path, tiny_model: Path, write_run, write_jsonl) -> Load:
    """Read a run file with these arms. Beside it are an adapter of its base, one of another base,
    and files of rows."""
    for name, base in (("own", tiny_model.name), ("foreign", "other-model")):
        (tmp_path / name).mkdir()
        values = {"base_model_name_or_path": base}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(values))
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"weights")
    write_jsonl(tmp_path / "rows.jsonl", [EXAMPLE, {"prompt": "3 + 3", "completion": "6"}])
    turns = [SYSTEM, {"role": "user", "content": "2 + 2"}]
    write_jsonl(tmp_path / "system.jsonl", 2 * [{"prompt": turns, "completion": "4"}])
    write_jsonl(tmp_path / "broken.jsonl", [EXAMPLE, {"prompt": "3 + 3"}])

    def read(*arms: object) -> Run:
        path = write_run(
            model={"base": str(tiny_model), "dtype": "float32"},
            preferences={"source": "path", "path": "rows.jsonl"},
            evaluate={
                "prompts": {"path": "rows.jsonl"},
                "engine": {"type": "hf", "max_model_len": 256},
                "arms": list(arms),
                "metrics": [{"type": "length"}],
            },
        )
        return Run(load_config(path))

    return read


def in_folder(arm: object, folder: Path) -> object:
    """The arm with `{folder}` replaced by the run file's folder."""
    return json.loads(json.dumps(arm).replace("{folder}", str(folder)))


@pytest.mark.parametrize(
    ("arm", "label", "turns"),
    [
        ("base", "Base", ["user: 9 + 9"]),
        ({"name": "base"}, "Base", ["user: 9 + 9"]),
        (
            {"name": "base", "few_shot": [EXAMPLE]},
            "Base (examples)",
            ["user: 2 + 2", "assistant: 4", "user: 9 + 9"],
        ),
        (
            {"name": "base", "system": "Count.", "few_shot": {"path": "rows.jsonl", "limit": 1}},
            "Base (own system prompt, examples)",
            ["system: Count.", "user: 2 + 2", "assistant: 4", "user: 9 + 9"],
        ),
        (
            {"name": "two-shot", "model": "base", "few_shot": {"path": "rows.jsonl"}},
            "two-shot",
            ["user: 2 + 2", "assistant: 4", "user: 3 + 3", "assistant: 6", "user: 9 + 9"],
        ),
        ({"name": "mine.v2", "adapter": "{folder}/own"}, "mine.v2", ["user: 9 + 9"]),
        ({"name": "hub", "model": "owner/name"}, "hub", ["user: 9 + 9"]),
    ],
)
def test_what_an_arm_is_shown(load: Load, tmp_path: Path, arm, label: str, turns) -> None:
    run = load(in_folder(arm, tmp_path))
    ((name, found),) = arms_of(run).items()
    prompt = Prompt(id="p", messages=(Message(role="user", content="9 + 9"),))
    shown = [f"{turn.role}: {turn.content}" for turn in found.prompting.messages(prompt)]
    assert (found.config.label, shown) == (label, turns)
    assert (found.weights.adapter is not None) == (name == "mine.v2")
    assert (found.weights.model == run.config.model.base) == (name != "hub")


def test_an_arm_s_own_system_prompt_replaces_that_of_a_prompt(load: Load) -> None:
    asked = Prompt(id="p", messages=(Message(**SYSTEM), Message(role="user", content="9 + 9")))
    rows = {"path": "system.jsonl"}
    arms = arms_of(
        load(
            {"name": "base", "few_shot": rows},
            {"name": "mine", "model": "base", "system": "Count."},
            {"name": "clash", "model": "base", "system": "Count.", "few_shot": rows},
        )
    )
    roles = [turn.role for turn in arms["base"].prompting.messages(asked)]
    two = 2 * ["user", "assistant"]
    assert roles == ["system", *two, "user"], "the examples' equal turn is not shown again"
    first, *rest = arms["mine"].prompting.messages(asked)
    assert (first.content, len(rest)) == ("Count.", 1)
    with pytest.raises(DataError, match=r"clash: the example .*system\.jsonl:1 has another system"):
        arms["clash"].prompting.messages(asked)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["base", "base"], "evaluate.arms: an arm is listed twice: base, base"),
        (["base", {"name": "Base", "model": "base"}], "an arm is listed twice: base, Base"),
        (["rival"], "evaluate.arms: 'rival' is not one of base, sft, dpo; another model"),
        ([], "evaluate.arms: give at least 1 item"),
        ([{"model": "base"}], "evaluate.arms.0.name: missing"),
        ([{"name": "a/b", "model": "base"}], "evaluate.arms.0.name: String should match pattern"),
        ([{"name": "..", "model": "base"}], "evaluate.arms.0.name: String should match pattern"),
        ([{"name": "new"}], "evaluate.arms.0: the arm new needs `model` or `adapter`"),
        (
            [{"name": "new", "model": "base", "adapter": "x"}],
            "evaluate.arms.0: the arm new has both `model` and `adapter`; keep one",
        ),
        (
            [{"name": "sft", "model": "x"}],
            "evaluate.arms.0: the arm sft is the run's own model; remove `model`, or choose "
            "another name",
        ),
        ([{"name": "base", "shots": 2}], "evaluate.arms.0.shots: unknown key"),
        ([{"name": "base", "few_shot": []}], "arms.0: few_shot: at least one example"),
        (
            [{"name": "base", "few_shot": [{"prompt": "a"}]}],
            "evaluate.arms.0.few_shot.0.completion: missing",
        ),
        ([{"name": "base", "few_shot": {}}], "evaluate.arms.0.few_shot: give exactly one of"),
        ([{"name": "base", "system": ""}], "evaluate.arms.0.system: String should have at least"),
    ],
)
def test_a_wrong_arm_is_refused_with_its_place(load: Load, arms, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*arms)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2, "one problem, one line"


@pytest.mark.parametrize(
    ("arm", "kind", "message"),
    [
        ({"name": "a", "adapter": "{folder}/foreign"}, ModelError, "is an adapter for other-model"),
        ({"name": "a", "adapter": "{folder}"}, ModelError, "a: .* is not the folder of an adapter"),
        ({"name": "a", "model": "{folder}/own"}, ModelError, "a: .*own is an adapter; use `adapt"),
        ({"name": "a", "model": "{folder}/none"}, ModelError, "none: no such model"),
        ({"name": "base", "few_shot": {"path": "none.jsonl"}}, DataError, "none.jsonl: no such f"),
        ({"name": "base", "few_shot": {"path": "broken.jsonl"}}, DataError, "broken.jsonl:2: `com"),
        ({"name": "base", "system": "a\0b"}, ConfigError, "base: a text holds a NUL character"),
        ({"name": "base", "few_shot": {"path": "system.jsonl"}}, DataError, "another system turn"),
        ({"name": "base", "few_shot": {"path": "rows.jsonl"}}, DataError, "is also an example of"),
    ],
)
def test_what_an_arm_names_is_checked_before_any_work(
    load: Load, tmp_path: Path, arm, kind: type[UserError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        check_arms(load("sft", in_folder(arm, tmp_path)))
