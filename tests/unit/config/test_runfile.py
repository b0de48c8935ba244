from pathlib import Path
from typing import Any

import pytest

from dpo_dist.config import Config, Lora, Rounds, Train
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError

EVALUATE = {
    "prompts": {"path": "p.jsonl"},
    "engine": {"type": "vllm"},
    "metrics": [{"type": "length"}],
}
MINIMAL = {"model": {"base": "m"}, "preferences": {"source": "path", "path": "p.jsonl"}}


def test_defaults_are_those_of_the_readme(write_run) -> None:
    config = load_config(write_run(**MINIMAL, train={}))
    assert config.train == Train(
        method=Lora(r=16),
        loss={"sigmoid": 1.0},
        beta=0.1,
        learning_rate=5e-6,
        num_epochs=1,
        global_batch_size=16,
        micro_batch_size=2,
        bf16=True,
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"betta": 0.1}}, r"train\.betta: unknown key; did you mean `beta`\?"),
        ({"trian": {}}, r"trian: unknown key; did you mean `train`\?"),
        ({"train": {"method": {"type": "lora", "rank": 8}}}, r"train\.method\.rank: unknown key"),
        ({"train": {"method": {"type": "qlora"}}}, r"train\.method: .*'lora', 'full'"),
        ({"train": {"learning_rate": "fast"}}, r"train\.learning_rate: .*valid number"),
        ({"train": {"beta": 0}}, r"train\.beta: .*greater than 0"),
        (
            {"train": {"global_batch_size": 5, "micro_batch_size": 2}},
            r"train: global_batch_size 5 is not a multiple of micro_batch_size 2",
        ),
        ({"model": {"base": "m", "sft": "phase"}}, r"there is no `sft` section"),
        ({"model": {}}, r"model\.base: missing"),
        ({"judge": {"both_orders": True}}, r"judge\.judge: missing"),
        ({"judge": {"canaries": {"accept": ["pad"]}}}, r"judge\.canaries\.accept\.0: .*'padded'"),
        ({"preferences": {"source": "judged"}, "train": {}}, r"needs the sections `sample`"),
        (
            {"sample": {"prompts": {"path": "p"}, "engine": {"type": "hf"}, "slots": []}},
            "at least two slots, not 0",
        ),
        ({"sft": {"data": {"dataset": "x"}}}, r"sft\.data: `dataset` needs its `split`"),
        ({"evaluate": {**EVALUATE, "arms": []}}, r"evaluate\.arms: .*at least 1 item"),
        (
            {"evaluate": {**EVALUATE, "arms": ["sft", "sft"]}},
            r"evaluate\.arms: an arm is listed twice: sft, sft",
        ),
        (
            {"evaluate": {**EVALUATE, "guard": [""]}},
            r"guard: no metric is labelled ''; available: ",
        ),
        (
            {"evaluate": EVALUATE, "train": {"method": {"type": "lora", "r": 1024}}},
            r"train\.method\.r is 1024, and vLLM serves adapters up to a rank of 512",
        ),
        (
            {"evaluate": EVALUATE, "train": {"method": {"type": "lora", "use_dora": True}}},
            r"train\.method\.use_dora: vLLM does not serve such adapters",
        ),
        *(
            ({"train": {"method": {"type": "lora", **method}}}, message)
            for method, message in (
                ({"dropout": 0.1}, r"train: method\.dropout: TRL sets it to 0"),
                (
                    {"init_lora_weights": "pissa"},
                    "init_lora_weights: pissa.*reference",
                ),
                ({"init_lora_weights": False}, "init_lora_weights: .*another model"),
                ({"bias": "all"}, r"train\.method.*: `bias` cannot be set: .*the base without"),
                ({"lora_alpha": 8}, "its name is `alpha`"),
                ({"target_modules": ["lm_head"]}, "`modules_to_save`"),
                ({"layers_to_transform": [1]}, "needs a list of names"),
            )
        ),
        (
            {
                "model": {"base": "m", "sft": "phase"},
                "sft": {"data": {"path": "s"}, "method": {"type": "lora", "use_rslora": True}},
                "train": {},
            },
            r"train\.method\.use_rslora is False and sft\.method\.use_rslora is True",
        ),
    ],
)
def test_a_wrong_key_is_named(write_run, sections: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write_run(**{**MINIMAL, **sections}))


def test_any_number_of_slots_from_two_on(write_run) -> None:
    sample = {"prompts": {"path": "p"}, "engine": {"type": "hf"}}
    metric = {"type": "label_match", "field": "f"}
    judge = {"judge": {"type": "metric", "metrics": [metric]}}

    def load(slots: int, **more: object) -> Config:
        section = {**sample, "slots": [{"temperature": 0.1 * n} for n in range(slots)]}
        return load_config(write_run(**MINIMAL, sample=section, judge={**judge, **more}))

    with pytest.raises(ConfigError, match="at least two slots, not 1"):
        load(1)
    for slots in (2, 3, 8):
        config = load(slots)
        assert config.sample is not None and len(config.sample.slots) == slots
    assert load(3, pairs="all").dump()["judge"]["pairs"] == "all"
    assert load(2, balance="temperature").judge is not None
    with pytest.raises(
        ConfigError, match=r"balance: temperature balances two slots, but there are 3"
    ):
        load(3, balance="temperature")


def test_overrides_reach_into_sections_and_make_missing_ones(write_run) -> None:
    config = load_config(write_run(**MINIMAL), ["train.beta=0.3", "train.args.report_to=[wandb]"])
    assert config.train is not None and config.train.beta == 0.3
    assert config.trackers == ("wandb",) and "WANDB_API_KEY" in config.key_variables
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        load_config(write_run(**MINIMAL), ["train.beta"])
    with pytest.raises(ConfigError, match=r"--set run\.name=\[a: \[a is not valid YAML"):
        load_config(write_run(**MINIMAL), ["run.name=[a"])


SLOTS = {
    "sample": {
        "prompts": {"path": "p"},
        "engine": {"type": "hf"},
        "slots": [{"temperature": 0.1}, {"temperature": 0.2}],
    }
}


def test_overrides_reach_items_of_lists_and_defaults(write_run) -> None:
    at = "sample.slots.1.temperature"
    config = load_config(write_run(**MINIMAL, **SLOTS), [f"{at}=0.9", "sample.slots.0.top_k="])
    assert config.sample is not None
    assert [slot.temperature for slot in config.sample.slots] == [0.1, 0.9]
    without = {"sample": {**SLOTS["sample"]}}
    del without["sample"]["slots"]
    config = load_config(write_run(**MINIMAL, **without), [f"{at}=0.9", "train.method.r=8"])
    assert config.sample is not None and config.train is not None
    assert [slot.temperature for slot in config.sample.slots] == [0.7, 0.9]
    assert config.train.method == Lora(r=8)
    config = load_config(write_run(**MINIMAL, train={}), ["train.method.type=full"])
    assert config.train is not None and config.train.method.type == "full"


@pytest.mark.parametrize("text", ["", "null", "~"])
def test_an_empty_override_is_null(write_run, text: str) -> None:
    sections = {**MINIMAL, "train": {"save_minutes": 5}}
    config = load_config(write_run(**sections), [f"train.save_minutes={text}"])
    assert config.train is not None and config.train.save_minutes is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sample.slots.2.temperature=1", "sample.slots is a list with items 0 to 1, not '2'"),
        ("sample.slots.-1.temperature=1", "sample.slots is a list with items 0 to 1, not '-1'"),
        ("sample.slots.first.temperature=1", "is a list with items 0 to 1, not 'first'"),
        ("sample.slots.5=1", "is a list with items 0 to 1, not '5'"),
        ("sample.slots.1.temperature.x=1", "sample.slots.1.temperature is 0.2, not a section"),
        ("model.base.x=1", "model.base is 'm', not a section or list"),
        ("sample..slots=1", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("train={beta: 1, beta: 2}", "`beta` stands twice"),
        (
            "sample.slots.1.top_p=2",
            r"run\.yaml:\n  --set: sample\.slots\.1\.top_p: .*less than or equal",
        ),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(write_run, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write_run(**MINIMAL, **SLOTS), [override])


RUN_FILE = """\
run: {name: t}
model:
  base: m
train:
  beta: 0.1
  method: {type: lora, rank: 8}
preferences:
  source: path
"""


@pytest.mark.parametrize(
    ("more", "lines"),
    [
        (
            "",
            [
                "line 6: train.method.rank: unknown key",
                "line 7: preferences: source: path needs the key `path`",
            ],
        ),
        ("trian: 1", ["line 6: train.method.rank", "line 9: trian: unknown key"]),
        ("  path: [", ["not valid YAML: line 9, column 10: "]),
        ("train: {}", ["not valid YAML: `train` stands twice, in line 4 and in line 9"]),
        ("  source: judged", ["`preferences.source` stands twice, in line 8 and in line 9"]),
    ],
)
def test_errors_name_the_line(tmp_path: Path, more: str, lines: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN_FILE + more)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    for line in lines:
        assert line in str(error.value)


def test_a_directory_is_not_a_run_file(tmp_path: Path) -> None:
    def said() -> str:
        with pytest.raises(ConfigError, match="not a run file: it ") as error:
            load_config(tmp_path)
        return str(error.value).partition("not a run file: ")[2]

    assert said() == "it is empty"
    (tmp_path / "a.yaml").write_text("")
    assert said() == "it contains the YAML files a.yaml"
    phase = tmp_path / "runs" / "x" / "train"
    phase.mkdir(parents=True)
    (phase / "fingerprint.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"it contains the runs x$"):
        load_config(tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"it is the directory of a run$"):
        load_config(tmp_path / "runs" / "x")
    with pytest.raises(ConfigError, match=r"it is the phase `train` of the run .*/x$"):
        load_config(phase)


def test_any_rank_is_transformers_to_serve(write_run) -> None:
    method = {"method": {"type": "lora", "r": 1024}}
    evaluate = {**EVALUATE, "engine": {"type": "hf"}}
    assert load_config(write_run(**MINIMAL, train=method, evaluate=evaluate)).train is not None


def test_data_paths_follow_the_run_file_and_model_paths_do_not(write_run, tmp_path: Path) -> None:
    config = load_config(write_run(**MINIMAL))
    assert config.preferences.path == tmp_path / "p.jsonl"
    assert config.model.base == "m"


def test_a_judge_s_files_follow_the_run_file_and_its_model_does_not(
    write_run, tmp_path: Path
) -> None:
    def judge(**section: object) -> Any:
        config = load_config(write_run(**MINIMAL, judge={"judge": section}))
        assert config.judge is not None
        return config.judge.judge

    assert judge(type="human", sheet="s.csv").sheet == tmp_path / "s.csv"
    assert judge(type="reward_model", model="models/r").model == "models/r"
    server = judge(type="openai_compatible", model="m", base_url="http://x/v1", rubric="r.md")
    assert (server.rubric, server.base_url) == (tmp_path / "r.md", "http://x/v1")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "not UTF-8"), (b"a: [", "not valid YAML"), (b"- 1", "expected a mapping")],
)
def test_an_unreadable_run_file_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.yaml")


def test_a_rate_without_a_point_is_a_number_too(write_run) -> None:
    # YAML 1.1 reads 5e-6 as a text.
    config = load_config(write_run(**MINIMAL), ["train.learning_rate=5e-6"])
    assert config.train is not None and config.train.learning_rate == 5e-6


ROUNDS = {
    "model": {"base": "m"},
    "sample": {"prompts": {"path": "p.jsonl"}, "engine": {"type": "hf"}},
    "judge": {"judge": {"type": "metric", "metrics": [{"type": "label_match", "field": "f"}]}},
    "train": {},
}


def test_a_number_of_rounds_is_short_for_their_section(write_run) -> None:
    short = load_config(write_run(**ROUNDS, rounds=3)).rounds
    assert short == Rounds(count=3, reference="previous", prompts="all")
    assert load_config(write_run(**ROUNDS), ["rounds=3"]).rounds == short
    split = load_config(write_run(**ROUNDS, rounds={"count": 2, "prompts": "split"})).rounds
    assert split == Rounds(count=2, prompts="split")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"rounds": 0}, r"rounds\.count: .*greater than 0"),
        ({"rounds": {"reference": "initial"}}, r"rounds\.count: missing"),
        ({"rounds": {"count": 2, "reference": "base"}}, r"rounds\.reference: .*'previous'"),
        ({"rounds": 2, "judge": None, "train": None}, "`rounds` needs the section `judge`"),
        ({"rounds": 2, "train": None}, "`rounds` needs the section `train`"),
        (
            {"rounds": 2, "preferences": {"source": "path", "path": "p.jsonl"}},
            "needs preferences.source `judged`",
        ),
        (
            {"rounds": {"count": 2, "reference": "initial"}, "train": {"reference": "live"}},
            r"rounds\.reference: initial needs train\.reference: cached",
        ),
    ],
)
def test_rounds_that_cannot_be_are_refused(write_run, sections: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write_run(**{**ROUNDS, **sections}))


def test_a_live_reference_is_the_start_of_each_round(write_run) -> None:
    config = load_config(write_run(**{**ROUNDS, "train": {"reference": "live"}}, rounds=2))
    assert config.rounds is not None and config.rounds.reference == "previous"
