"""The user's own judge: what it returns, what it costs, and what goes wrong in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dpo_dist.config import FunctionJudgeConfig
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError, JudgeFailed
from dpo_dist.judging.build import build_judge
from dpo_dist.judging.judge import Comparison, Judge
from dpo_dist.judging.panel import Judged, judge_all
from dpo_dist.judging.spend import Ledger, open_ledger
from dpo_dist.runs.weights import resource_digests
from dpo_dist.storage.artifacts import Journal, file_digest, read_records
from dpo_dist.storage.records import Ballot, Message, Prompt
from dpo_dist.system.functions import load_function
from tests.conftest import ROOT
from tests.console_text import without_times
from tests.unit.judging.test_panel import comparisons

CODE = """
CALLS = []
ANSWERS = []  # an error is raised

def prefer(prompt, first, second):
    CALLS.append((prompt, first, second))
    if not ANSWERS:
        return "first" if "GOOD" in first else "second"
    answer = ANSWERS.pop(0)
    if isinstance(answer, Exception):
        raise answer
    return answer

constant = 1
"""
LIMIT = {"price": 0.25, "max_usd": 1.0}


@pytest.fixture
def section(tmp_path: Path, write_module) -> Callable[..., FunctionJudgeConfig]:
    """The section of the judge in a module of its own."""
    name = write_module(CODE)

    def build(function: str = "prefer", **more: Any) -> FunctionJudgeConfig:
        values = {"type": "function", "path": tmp_path / f"{name}:{function}"}
        return FunctionJudgeConfig.model_validate(values | more)

    return build


@pytest.fixture
def judge(section, tmp_path: Path) -> Judge:
    return build_judge(section(), tmp_path)


def module(config: FunctionJudgeConfig) -> Any:
    return inspect.getmodule(load_function(config.path))


def asked(judge: Judge, *texts: tuple[str, str]) -> list[Ballot]:
    prompt = Prompt(id="p", messages=(Message(role="user", content="q"),), reference={"n": 1})
    items = [Comparison(prompt, "a", "b", *pair) for pair in texts]
    return [ballot for group in judge.compare(items) for ballot in group]


def poll(config: FunctionJudgeConfig, path: Path) -> tuple[Judged, Ledger, list[str]]:
    """The verdicts on twenty comparisons, 40 calls; the ledger; what was to be approved."""
    ledger, forecasts = open_ledger(config), []
    with Journal(path, Ballot) as journal:
        judged = judge_all(
            build_judge(config, path.parent),
            comparisons(20),
            journal,
            ledger=ledger,
            both_orders=True,
            seed=0,
            approve=forecasts.append,
        )
    return judged, ledger, forecasts


def test_it_is_shown_prompt_and_answers_and_its_word_is_the_outcome(section, judge: Judge) -> None:
    own = module(section())
    own.ANSWERS += ["first", "second", "tie"]
    ballots = asked(judge, ("one", "two"), ("three", "four"), ("five", "six"))
    assert [ballot.outcome for ballot in ballots] == ["first", "second", "tie"]
    assert [ballot.preferred for ballot in ballots] == ["a", "b", None]
    prompt, *texts = own.CALLS[0]
    assert prompt.reference == {"n": 1} and texts == ["one", "two"]


def test_a_free_judge_costs_nothing_and_asks_for_no_approval(section, tmp_path: Path) -> None:
    config = section()
    judged, ledger, forecasts = poll(config, tmp_path / "j")
    assert {verdict.outcome for verdict in judged.verdicts} == {"preferred"}
    assert not config.paid and forecasts == []
    assert ledger.spend() is None and ledger.note == ""
    assert {str(ballot.usage) for ballot in read_records(tmp_path / "j", Ballot)} == {"{}"}


def test_a_priced_judge_is_approved_and_counted_by_the_call(section, tmp_path: Path) -> None:
    config = section(price=0.25)
    _, ledger, forecasts = poll(config, tmp_path / "j")
    assert config.paid and forecasts == ["judge: 40 requests: about $10.00"]
    spend = ledger.spend()
    assert spend is not None
    assert (spend.usd, spend.usage, spend.prices_as_of) == (10.0, {"attempts": 40}, "")
    _, ledger, forecasts = poll(config, tmp_path / "j")
    assert forecasts == [] and ledger.usd == 10.0, "nothing is paid for twice"


def test_a_limit_stops_the_calls_before_it_is_exceeded(section, tmp_path: Path) -> None:
    config, journal = section(**LIMIT), tmp_path / "j"
    calls = module(config).CALLS
    message = r"max_usd 1 would be exceeded: \$1\.00 spent, comparisons left: 36\."
    for _ in range(2):  # a spent limit asks nothing more
        with pytest.raises(JudgeFailed, match=message):
            poll(config, journal)
        assert len(calls) == 4 == len(journal.read_text().splitlines())
    dearer = section(price=0.6, max_usd=1.0)
    with pytest.raises(JudgeFailed, match=r"\$2\.40 spent, comparisons left: 36\."):
        poll(dearer, journal)
    with pytest.raises(JudgeFailed, match=r"\$0\.60 spent, comparisons left: 39\."):
        poll(dearer, tmp_path / "another")
    _, ledger, _ = poll(section(price=0.25, max_usd=10.0), journal)
    assert len(calls) == 4 + 1 + 36 and ledger.usd == 10.0


def test_a_limit_without_a_price_is_refused(section) -> None:
    with pytest.raises(ValidationError, match="`max_usd` needs `price`, the cost of a comparison"):
        section(max_usd=1.0)


def test_calls_that_fail_are_named_counted_and_made_again(section, tmp_path: Path, capsys) -> None:
    config, journal = section(price=0.25), tmp_path / "j"
    own = module(config)
    own.ANSWERS += [TimeoutError("no answer"), ValueError("too long")]
    judged, ledger, _ = poll(config, journal)
    ballots = list(read_records(journal, Ballot))
    assert [(b.outcome, b.reasoning) for b in ballots[:2]] == [
        ("not_answered", "TimeoutError: no answer"),
        ("not_answered", "ValueError: too long"),
    ]
    assert judged.verdicts[0].outcome == "not_answered"
    assert {verdict.outcome for verdict in judged.verdicts[1:]} == {"preferred"}
    assert ledger.usd == 10.0, "what fails may cost as much"
    said = capsys.readouterr().err
    assert said.count("warning: no verdict on ") == 1
    assert "warning: no verdict on 'p0': TimeoutError: no answer; others may follow" in said

    judged, ledger, forecasts = poll(config, journal)
    assert forecasts == ["judge: 2 requests: about $0.50"] and len(own.CALLS) == 42
    assert {verdict.outcome for verdict in judged.verdicts} == {"preferred"}
    assert ledger.usd == 10.5, "the money of the first two is gone, too"


def test_a_limit_counts_the_calls_that_failed_before(section, tmp_path: Path) -> None:
    config, journal = section(**LIMIT), tmp_path / "j"
    own = module(config)
    own.ANSWERS += [TimeoutError("no answer")] * 3
    for _ in range(2):
        with pytest.raises(JudgeFailed, match=r"\$1\.00 spent"):
            poll(config, journal)
        assert len(own.CALLS) == 4


def test_an_error_that_quotes_the_answer_does_nothing_to_a_terminal(
    section, judge: Judge, tmp_path: Path, capsys
) -> None:
    module(section()).ANSWERS.append(ValueError("cannot read \x1b[31m\nred\ud800 " + "x" * 9999))
    (ballot,) = asked(judge, ("one", "two"))
    assert ballot.reasoning.startswith(r"ValueError: cannot read \x1b[31m red\ud800 xxx")
    assert len(ballot.reasoning) < 350 and "\x1b" not in capsys.readouterr().err
    with Journal(tmp_path / "j", Ballot) as journal:
        journal.append([ballot])


@pytest.mark.parametrize(
    "returned", [None, "", "First", "1", "third", "GOOD\x1b[31m\ud800", 1, True, ["first"]]
)
def test_any_other_word_is_no_verdict(section, judge: Judge, returned: object, capsys) -> None:
    own = module(section())
    own.ANSWERS += [returned, returned, "tie"]
    one, two, three = asked(judge, ("a", "b"), ("c", "d"), ("e", "f"))
    assert one.outcome == two.outcome == "unparsed" and three.outcome == "tie"
    assert one.reasoning == f"it returned {returned!r}"
    assert not one.compares and one.preferred is None
    said = without_times(capsys.readouterr().err)
    assert said == f"warning: no verdict on 'p': it returned {returned!r}; others may follow"


def test_a_value_that_compares_in_its_own_way_is_no_verdict(section, judge: Judge) -> None:
    import numpy as np

    module(section()).ANSWERS.append(np.array(["first", "second"]))
    assert asked(judge, ("a", "b"))[0].outcome == "unparsed"


def test_another_version_of_the_file_is_another_judge(section, tmp_path: Path) -> None:
    config = section()
    (file,) = config.files.values()
    assert resource_digests([config]) == {config.path.name: file_digest(file)}
    before = build_judge(config, tmp_path).identity
    assert before.startswith(f"{config.name}:")
    assert build_judge(section(price=0.25), tmp_path).identity == before
    file.write_text(CODE + "\n# stricter\n")
    assert build_judge(config, tmp_path).identity != before


def test_a_reference_is_part_of_the_question(judge: Judge) -> None:
    (one,) = comparisons(1)
    prompt = one.prompt.model_copy(update={"reference": {"n": 2}})
    other = Comparison(prompt, one.first, one.second, one.first_text, one.second_text)
    assert judge.key(one) != judge.key(other)


def test_a_function_that_is_not_there_is_named_before_anything_is_asked(
    section, tmp_path: Path
) -> None:
    missing = FunctionJudgeConfig(type="function", path=tmp_path / "no_such_module:prefer")
    message = (
        f"the function no_such_module:prefer cannot be imported from {tmp_path} or the working "
        "directory: ModuleNotFoundError: No module named 'no_such_module'"
    )
    for ask in (lambda: build_judge(missing, tmp_path), lambda: resource_digests([missing])):
        with pytest.raises(ConfigError) as caught:
            ask()
        assert str(caught.value) == message
    for function, words in (
        ("missing", "has no attribute 'missing'"),
        ("constant", "is not a function"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_judge(section(function), tmp_path)


def test_the_run_file_names_a_function_of_a_module_beside_it(section, tmp_path: Path, write_run):
    def load(path: str) -> FunctionJudgeConfig:
        judge = {"judge": {"type": "function", "path": path}}
        return load_config(write_run(model={"base": "m"}, judge=judge)).judge.judge

    assert load(section().path.name) == section()
    with pytest.raises(ConfigError, match=r"'prefer' is not of the form module:function or file"):
        load("prefer")


def test_a_file_is_a_module_of_its_own_whatever_is_installed(tmp_path: Path, write_run) -> None:
    """`json.py:prefer` is the user's file, not Python's module; it finds its neighbours."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "neighbour_of_a_judge.py").write_text("BEST = 'GOOD'")
    (tmp_path / "code" / "json.py").write_text(
        "from neighbour_of_a_judge import BEST\n"
        "def prefer(prompt, first, second):\n"
        "    return 'first' if BEST in first else 'second'\n"
    )
    judge = {"judge": {"type": "function", "path": "code/json.py:prefer"}}
    config = load_config(write_run(model={"base": "m"}, judge=judge)).judge.judge
    (file,) = config.files.values()
    assert file == tmp_path / "code" / "json.py"
    (ballot,) = asked(build_judge(config, tmp_path), ("bad", "GOOD"))
    assert ballot.outcome == "second"
    absent = FunctionJudgeConfig(type="function", path=tmp_path / "absent.py:prefer")
    with pytest.raises(ConfigError, match=r"FileNotFoundError: no such file: absent\.py"):
        build_judge(absent, tmp_path)


def test_the_example_of_the_documentation_judges(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "judge.md").read_text(encoding="utf-8")
    example = text.partition("## Your own function")[2].split("```")[1].removeprefix("python\n")
    (tmp_path / "my_judge.py").write_text(example)
    judge = build_judge(
        FunctionJudgeConfig(type="function", path=tmp_path / "my_judge.py:prefer"), tmp_path
    )
    prompt = Prompt(id="p", messages=(Message(role="user", content="q"),), reference={"number": 7})
    texts = [("it is 7", "it is 8"), ("6", "7"), ("7", "it is 7"), ("6", "8")]
    items = [Comparison(prompt, "a", "b", *pair) for pair in texts]
    ballots = [ballot for group in judge.compare(items) for ballot in group]
    assert [ballot.outcome for ballot in ballots] == ["first", "second", "first", "tie"]


FORMS = """
import asyncio

BUSY = MOST = 0
SIZES = []

def word(first):
    return "first" if "GOOD" in first else "second"

async def single(prompt, first, second):
    global BUSY, MOST
    BUSY += 1
    MOST = max(MOST, BUSY)
    await asyncio.sleep(0.001)
    BUSY -= 1
    if prompt.id == "p3":
        raise ValueError("no")
    return word(first)

def batched(prompts, firsts, seconds):
    SIZES.append(len(prompts))
    return [word(first) for first in firsts]

async def both(prompts, firsts, seconds):
    return batched(prompts, firsts, seconds)

def short(prompts, firsts, seconds):
    return ["first"]

def text(prompts, firsts, seconds):
    return "first"

def failing(prompts, firsts, seconds):
    raise ValueError("no")
"""


@pytest.fixture
def form(tmp_path: Path, write_module) -> Callable[..., FunctionJudgeConfig]:
    name = write_module(FORMS)

    def build(function: str, **more: Any) -> FunctionJudgeConfig:
        path = tmp_path / f"{name}.py:{function}"
        return FunctionJudgeConfig.model_validate({"type": "function", "path": path} | more)

    return build


@pytest.mark.parametrize(
    ("function", "more"),
    [
        ("single", {}),
        ("single", {"concurrency": 3, "price": 0.25}),
        ("batched", {"batch_size": 7, "price": 0.25}),
        ("batched", {"batch_size": 1}),
        ("both", {"batch_size": 7, "concurrency": 2}),
    ],
    ids=str,
)
def test_async_and_batched_functions_judge_alike(form, tmp_path: Path, function, more) -> None:
    config = form(function, **more)
    judged, ledger, _ = poll(config, tmp_path / "j")
    own = module(config)
    outcomes = {v.prompt_id: v.outcome for v in judged.verdicts}
    failed = {"p3"} if function == "single" else set()
    assert {p for p, outcome in outcomes.items() if outcome != "preferred"} == failed
    assert ledger.usd == (10.0 if "price" in more else None)
    if function == "single":
        assert more.get("concurrency", 8) == own.MOST
        problems = [b.reasoning for b in read_records(tmp_path / "j", Ballot) if b.reasoning]
        assert problems == ["ValueError: no"] * 2
    else:
        size = more["batch_size"]
        assert sum(own.SIZES) == 40 and set(own.SIZES) <= {size, 40 % size}


def test_a_limit_holds_for_an_async_function(form, tmp_path: Path) -> None:
    with pytest.raises(JudgeFailed, match=r"\$1\.00 spent, comparisons left: 36\."):
        poll(form("single", price=0.25, max_usd=1.0), tmp_path / "j")
    assert len((tmp_path / "j").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("function", "outcome", "problem"),
    [
        ("short", "unparsed", "it returned 1 verdicts on 3 comparisons"),
        ("text", "unparsed", "it returned 'first', not a list"),
        ("failing", "not_answered", "ValueError: no"),
    ],
)
def test_a_batch_that_cannot_be_told_apart_is_no_verdict(
    form, tmp_path: Path, function: str, outcome: str, problem: str, capsys
) -> None:
    judge = build_judge(form(function, batch_size=5), tmp_path)
    ballots = asked(judge, ("a", "b"), ("c", "d"), ("e", "f"))
    assert [(b.outcome, b.reasoning) for b in ballots] == [(outcome, problem)] * 3
    said = without_times(capsys.readouterr().err)
    assert said == f"warning: no verdict on 'p': {problem}; others may follow"


def test_concurrency_of_a_function_that_is_not_async_is_refused(form, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batched is not async, so its calls run one after the"):
        build_judge(form("batched", batch_size=2, concurrency=4), tmp_path)
