"""The client of `vllm serve` against a strict loopback server and its faults."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from dpo_dist.config import Sampling, VllmServer
from dpo_dist.errors import ConfigError, EngineFailed, ModelError
from dpo_dist.generation import dispatch
from dpo_dist.generation.engine import Completion, Request
from dpo_dist.generation.sampling import answer_all
from dpo_dist.generation.vllm_server import VllmServers
from dpo_dist.storage.artifacts import Journal
from dpo_dist.storage.records import Generation
from dpo_dist.system.console import scrub
from tests.vllm_server import END, Fault, Server, numbers, serve

SLOTS = (Sampling(temperature=0.7), Sampling(temperature=1.2, top_p=0.9, top_k=40, min_p=0.05))


def requests(count: int, adapter: Path | None = None) -> list[Request]:
    """Two slots of each prompt, side by side."""
    return [
        Request(f"{slot}/p{n}", (5, 100 + n, n % 3), sampling, 8, adapter)
        for n in range(count)
        for slot, sampling in enumerate(SLOTS)
    ]


def connect(servers: Iterable[Server], adapters: Iterable[Path] = (), **settings) -> VllmServers:
    patience = settings.pop("patience", 20.0)
    config = VllmServer(
        type="vllm_server",
        urls=tuple(server.url for server in servers),
        **({"max_model_len": 256, "in_flight": 4} | settings),
    )
    return VllmServers(
        config, "model", adapters=list(adapters), backoff_base=0.02, patience=patience
    )


def check(asked: list[Request], answers: Iterable[Completion]) -> None:
    """Every request is answered once, with what the server gives to it and no other."""
    answers = list(answers)
    assert Counter(a.id for a in answers) == Counter(r.id for r in asked)
    by_id = {answer.id: answer for answer in answers}
    for request in asked:
        body = {
            "prompt": list(request.prompt_ids),
            "temperature": request.sampling.temperature,
            "max_tokens": request.max_tokens,
        }
        expected, answer = numbers("model", body), by_id[request.id]
        assert answer.token_ids == tuple(expected.token_ids)
        assert (answer.text, answer.finish_reason) == (expected.text, expected.finish_reason)


@pytest.fixture
def pair() -> Iterator[list[Server]]:
    with serve(2) as servers:
        yield servers


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_token_ids_go_in_and_come_out_under_each_request_s_own_setting() -> None:
    with serve() as servers:
        (server,) = servers
        asked = requests(5)
        check(asked, connect(servers).generate(asked))
        sent = {(tuple(b["prompt"]), b["temperature"]): b for b in server.requests}
        body = sent[asked[1].prompt_ids, 1.2]
        assert body["prompt"] == [5, 100, 0]
        assert (body["top_p"], body["top_k"], body["min_p"]) == (0.9, 40, 0.05)
        assert sent[asked[0].prompt_ids, 0.7]["top_k"] == 0
        assert all(b["return_token_ids"] and b["max_tokens"] == 8 for b in server.requests)


def test_an_answer_ends_with_its_end_token_or_is_cut_off() -> None:
    with serve() as servers:
        answers = {a.id: a for a in connect(servers).generate(requests(2))}
    assert answers["0/p0"].token_ids[-1] == END
    assert (answers["0/p0"].finish_reason, answers["0/p1"].finish_reason) == ("stop", "length")
    assert len(answers["0/p1"].token_ids) == 8


def test_the_slots_of_a_prompt_meet_the_same_prefix_cache(pair) -> None:
    for server in pair:
        server.latency = 0.01
    check(requests(40), connect(pair).generate(requests(40)))
    seen = [Counter(tuple(body["prompt"]) for body in server.requests) for server in pair]
    assert all(seen), "both replicas work"
    assert not seen[0].keys() & seen[1].keys()
    assert set((seen[0] | seen[1]).values()) == {2}


@pytest.mark.parametrize("in_flight", [1, 3])
def test_what_is_in_flight_is_bounded_for_each_replica(pair, in_flight: int) -> None:
    for server in pair:
        server.latency = 0.02
    check(requests(12), connect(pair, in_flight=in_flight).generate(requests(12)))
    assert [server.peak for server in pair] == [in_flight, in_flight]


def test_a_slow_consumer_is_waited_for() -> None:
    with serve() as servers:
        answers = iter(connect(servers, in_flight=3).generate(requests(20)))
        next(answers)
        time.sleep(0.3)
        assert len(servers[0].requests) <= 4
        assert len(list(answers)) == 39


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503),
        Fault(status=429),
        Fault(status=500),
        Fault(status=0),
        Fault(body=b"<html>"),
        Fault(body=b"[]"),
        Fault(body=b'{"choices": []}'),
        Fault(choice={"finish_reason": "abort"}),
        Fault(choice={"finish_reason": "error"}),
    ],
    ids=lambda fault: f"{fault.status} {fault.body} {fault.choice}",
)
def test_a_passing_failure_loses_nothing_and_repeats_nothing(fault: Fault) -> None:
    with serve() as servers:
        servers[0].faults.extend([fault] * 9)
        check(requests(10), connect(servers).generate(requests(10)))
        assert len(servers[0].requests) == 29


def test_a_server_that_hangs_on_a_request_is_asked_again() -> None:
    with serve() as servers:
        servers[0].faults.append(Fault(seconds=60))
        check(requests(3), connect(servers, patience=0.3).generate(requests(3)))
        assert servers[0].abandoned == 1


def test_a_request_that_fails_every_time_ends_the_work_with_its_name() -> None:
    with serve() as servers:
        engine = connect(servers, in_flight=1, max_attempts=3)
        answers = engine.generate(requests(2))
        before = [next(answers)]
        servers[0].faults.extend([Fault(status=503)] * 3)
        with pytest.raises(EngineFailed, match=r"request \S+ failed 3 times.*HTTP 503 planned"):
            before.extend(answers)
        assert 1 <= len(before) < 4
        assert len(servers[0].requests) == len(before) + 3


def test_a_dead_replica_s_requests_go_to_the_others(pair, capsys) -> None:
    pair[0].dies_after = 7
    for server in pair:
        server.latency = 0.01
    check(requests(40), connect(pair).generate(requests(40)))
    assert pair[0].answered == 7
    # What the dying one had sent and nobody had read yet is drawn once more: at most `in_flight`.
    assert 73 <= pair[1].answered <= 73 + 4
    assert f"{pair[0].url} is not responding" in capsys.readouterr().err


def test_a_replica_that_is_not_well_is_left_alone_though_it_still_answers(pair) -> None:
    engine = connect(pair)
    pair[0].health = 503
    pair[0].faults.append(Fault(status=500))
    for server in pair:
        server.latency = 0.1  # longer than it takes to notice the fault, also on a busy machine
    check(requests(30), engine.generate(requests(30)))
    assert pair[0].answered <= 3
    assert pair[1].answered >= 57


def test_a_replica_that_falls_silent_is_noticed(pair, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "CHECK_SECONDS", 0.1)
    engine = connect(pair)
    pair[0].faults.extend([Fault(seconds=60)] * 4)
    pair[0].health = 503
    started = time.monotonic()
    check(requests(10), engine.generate(requests(10)))
    assert time.monotonic() - started < 5


def test_what_waits_for_a_slow_consumer_is_not_asked_for_again(pair, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "CHECK_SECONDS", 0.1)
    answers = iter(connect(pair).generate(requests(10)))
    first = [next(answers)]
    time.sleep(0.3)  # both replicas' answers wait
    pair[0].health = 503
    time.sleep(0.5)
    check(requests(10), [*first, *answers])
    assert len(pair[0].requests) + len(pair[1].requests) == 20


def test_the_end_does_not_wait_for_a_replica_that_hangs(pair, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "CHECK_SECONDS", 0.3)
    engine = connect(pair)
    pair[0].die()
    for server in pair:
        server.latency = 0.02
    answers = iter(engine.generate(requests(20)))
    first = [next(answers)]
    pair[0].probe_seconds = 60
    pair[0].revive()
    started = time.monotonic()
    check(requests(20), [*first, *answers])
    assert time.monotonic() - started < 10


def test_a_replica_that_comes_back_works_again(pair, capsys) -> None:
    pair[0].dies_after = 3
    for server in pair:
        server.latency = 0.02
    answers = iter(connect(pair).generate(requests(60)))
    first = [next(answers) for _ in range(30)]
    pair[0].dies_after = None
    pair[0].revive()
    check(requests(60), [*first, *answers])
    assert pair[0].answered > 3
    assert f"{pair[0].url} is back" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"model": "another", "root": "another"}, {"fingerprint": "vllm-0.33.0-ffff"}]
)
def test_a_replica_that_comes_back_as_another_stays_out(pair, change) -> None:
    pair[0].dies_after = 3
    for server in pair:
        server.latency = 0.02
    answers = iter(connect(pair).generate(requests(40)))
    first = [next(answers) for _ in range(20)]
    for name, value in change.items():
        setattr(pair[0], name, value)
    pair[0].dies_after = None
    pair[0].revive()
    check(requests(40), [*first, *answers])
    assert pair[0].answered == 3


def test_no_replica_left_is_an_end_that_keeps_what_was_answered(pair, tmp_path: Path) -> None:
    for server in pair:
        server.dies_after = 6
        server.latency = 0.01

    def record(answer: Completion) -> Generation:
        return Generation(
            prompt_id=answer.id,
            arm="sft",
            decoding=0,
            text=answer.text,
            token_ids=answer.token_ids,
            finish_reason=answer.finish_reason,
            engine="loopback",
        )

    engine, asked = connect(pair, max_attempts=2), requests(20)
    with Journal(tmp_path / "journal.jsonl", Generation) as journal:
        with pytest.raises(EngineFailed, match=r"no vLLM server is reachable.*Connect.*vllm serve"):
            answer_all(engine, asked, record, journal, name="test", done=0, total=len(asked))
        done = {kept.prompt_id for kept in journal.read()}
        assert 4 <= len(done) <= 12
        for server in pair:
            server.dies_after = None
            server.revive()
        missing = [request for request in asked if request.id not in done]
        answer_all(
            connect(pair),
            missing,
            record,
            journal,
            name="test",
            done=len(done),
            total=len(done) + len(missing),
        )
        assert sorted(r.prompt_id for r in journal.read()) == sorted(r.id for r in asked)


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Wait until it holds, at most so long; returns whether it does."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_a_consumer_that_stops_cancels_what_is_in_flight() -> None:
    with serve() as servers:
        (server,) = servers
        server.faults.extend([Fault()] + [Fault(seconds=60)] * 40)
        answers = iter(connect(servers).generate(requests(20)))
        next(answers)
        assert within(30, lambda: server.in_flight >= 3)
        answers.close()
        assert within(30, lambda: server.in_flight == 0)
        assert 3 <= server.abandoned <= 4


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"token_ids": None}, "does not return token ids"),
        ({"prompt_token_ids": [1, 5, 100, 0]}, "a different prompt"),
        ({"token_ids": [11, 12], "finish_reason": "length"}, "returned 2 tokens"),
        ({"token_ids": [11] * 9, "finish_reason": "length"}, "returned 9 tokens"),
        ({"token_ids": [], "finish_reason": "stop"}, "returned 0 tokens"),
    ],
)
def test_an_answer_to_something_else_is_never_taken(choice, words: str) -> None:
    with serve() as servers:
        servers[0].faults.append(Fault(choice=choice))
        with pytest.raises(EngineFailed, match=words):
            list(connect(servers, in_flight=1).generate(requests(1)))


def test_a_refused_request_ends_the_work_with_the_server_s_words() -> None:
    with serve() as servers:
        engine = connect(servers)
        servers[0].max_model_len = 8  # restarted with less behind a gateway, say
        with pytest.raises(EngineFailed, match="maximum context length is 8 tokens"):
            list(engine.generate(requests(1)))


def test_a_request_without_room_is_the_caller_s_mistake() -> None:
    with serve() as servers, pytest.raises(AssertionError, match="long"):
        list(connect(servers).generate([Request("long", (1,) * 250, SLOTS[0], 8)]))


def test_a_replica_has_to_serve_the_model(pair) -> None:
    pair[1].model = pair[1].root = "other"
    with pytest.raises(ModelError, match=rf"{pair[1].url} does not serve model, but other"):
        connect(pair)
    pair[1].root = "model"
    check(requests(9), connect(pair).generate(requests(9)))
    assert {body["model"] for body in pair[1].requests} == {"other"}


def test_a_model_s_directory_is_known_however_it_is_written(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    with serve() as servers:
        servers[0].model, servers[0].root = "served", str(tmp_path / "weights")
        config = VllmServer(type="vllm_server", urls=(servers[0].url,), max_model_len=64)
        engine = VllmServers(config, "./weights")
        assert len(list(engine.generate(requests(1)))) == 2


def test_a_replica_has_to_have_room() -> None:
    with serve(max_model_len=128) as servers:
        with pytest.raises(ModelError, match=r"max_model_len of 128 .* 256 are needed"):
            connect(servers)
        connect(servers, max_model_len=100)


def test_an_adapter_that_the_server_was_started_with_is_used(adapter: Path) -> None:
    with serve(adapters={"sft": adapter}) as servers:
        engine = connect(servers, [adapter])
        asked = [*requests(2, adapter), *(r for r in requests(4) if r.id[-1] in "23")]
        answers = {answer.id: answer for answer in engine.generate(asked)}
        assert len(answers) == 8
        assert Counter(body["model"] for body in servers[0].requests) == {"sft": 4, "model": 4}


def test_an_unknown_adapter_is_refused_with_the_flags_to_start_the_server(adapter: Path) -> None:
    others = {"other": adapter.parent / "other"}
    with serve(adapters=others) as servers, pytest.raises(ModelError) as refused:
        connect(servers, [adapter])
    words = str(refused.value)
    assert servers[0].url in words
    assert "other (" in words
    assert "--enable-lora --max-loras 2 --max-lora-rank 8" in words
    assert f"--lora-modules adapter-0={adapter}" in words


def test_an_adapter_is_loaded_where_the_server_allows_it(pair, adapter: Path) -> None:
    for server in pair:
        server.runtime_lora = True
    connect(pair, [adapter])
    connect(pair, [adapter])
    names = [list(server.adapters) for server in pair]
    assert names[0] == names[1]
    assert len(names[0]) == 1, "the second time it is there"


def test_an_adapter_that_was_trained_again_is_another(adapter: Path) -> None:
    with serve() as servers:
        servers[0].runtime_lora = True
        connect(servers, [adapter])
        (adapter / "adapter_model.safetensors").write_bytes(b"other weights")
        engine = connect(servers, [adapter])
        old, new = servers[0].adapters
        list(engine.generate(requests(1, adapter)))
        assert {body["model"] for body in servers[0].requests} == {new} != {old}


def test_absent_replicas_are_said_and_awaited(pair, capsys) -> None:
    pair[0].die()
    engine = connect(pair)
    assert f"no server answers at {pair[0].url}" in capsys.readouterr().err
    pair[0].revive()
    for server in pair:
        server.latency = 0.02
    check(requests(60), engine.generate(requests(60)))
    assert pair[0].answered > 0


def test_no_server_at_all_is_refused_with_the_command_that_starts_one(pair) -> None:
    for server in pair:
        server.die()
    with pytest.raises(ModelError, match="vllm serve model --max-model-len 256"):
        connect(pair)


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(monkeypatch) -> None:
    with serve() as servers:
        servers[0].key = "mine-0123456789"
        with pytest.raises(ModelError, match="api_key_variable"):
            connect(servers)
        with pytest.raises(ConfigError, match="GENERATION_KEY is not set"):
            connect(servers, api_key_variable="GENERATION_KEY")
        monkeypatch.setenv("GENERATION_KEY", servers[0].key)
        engine = connect(servers, api_key_variable="GENERATION_KEY")
        check(requests(2), engine.generate(requests(2)))
        assert servers[0].key not in scrub(f"key {servers[0].key}")
        assert servers[0].key not in engine.identity


def test_the_identity_names_every_configuration_that_answers(pair) -> None:
    assert connect(pair).identity == "vllm serve: vllm-0.32.0-0a1b2c3d"
    pair[1].fingerprint = None
    assert connect(pair).identity == "vllm serve: vllm-0.32.0, vllm-0.32.0-0a1b2c3d"


def test_urls_are_the_servers_roots() -> None:
    config = VllmServer(type="vllm_server", urls=("http://a:1/v1/", "http://b:2/"))
    assert config.urls == ("http://a:1", "http://b:2")
    for wrong in (("a:1",), ("http://a:1", "http://a:1/v1"), ()):
        with pytest.raises(ValueError, match=r"not a URL|listed twice|at least 1"):
            VllmServer(type="vllm_server", urls=wrong)
