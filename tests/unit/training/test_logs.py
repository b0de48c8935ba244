from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from dpo_dist.errors import ConfigError, DataError, Preempted, TrainingDiverged
from dpo_dist.training.logs import (
    Echo,
    any_failed,
    explain,
    new_attempt,
    rank_log,
    record,
    record_exit,
    refusal,
)


def failed(attempt: Path, rank: int, at: float, text: str) -> None:
    record(attempt, rank, RuntimeError(text))
    path = attempt / f"rank-{rank}.error.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "time": at}))


def test_the_earliest_is_the_cause_and_a_broken_connection_never_is(tmp_path: Path) -> None:
    failed(tmp_path, 0, 1.0, "Connection closed by peer [10.0.0.2]:4711")  # its clock is behind
    assert "another rank has ended" in explain(tmp_path, 1)
    failed(tmp_path, 1, 3.0, "index out of range")
    failed(tmp_path, 2, 2.0, "CUDA out of memory")
    told = explain(tmp_path, 1)
    assert "rank 2 on " in told and "CUDA out of memory" in told and "2 more failed" in told
    assert "index out of range" not in told


def test_our_own_errors_are_told_without_a_traceback(tmp_path: Path) -> None:
    record(tmp_path, 1, TrainingDiverged("loss is nan at step 3"))
    assert explain(tmp_path, 1).startswith("loss is nan at step 3\n(rank 1 on ")


def test_a_killed_rank_is_told_with_its_last_lines_and_words_of_its_own_come_first(
    tmp_path: Path,
) -> None:
    rank_log(tmp_path, 3).write_text("step 7\n")
    record_exit(tmp_path, 3, -9)
    assert "killed by SIGKILL: out of memory" in explain(tmp_path, 1)
    assert explain(tmp_path, 1).count("step 7") == 1
    record(tmp_path, 4, ValueError("own words"))
    record_exit(tmp_path, 4, 1)
    assert "own words" in (tmp_path / "rank-4.error.json").read_text()


def test_without_a_record_the_launcher_speaks(tmp_path: Path) -> None:
    assert not any_failed(tmp_path)
    (tmp_path / "node-0.log").write_text("No module named nothing\n")
    said = explain(tmp_path, 7)
    assert "exited with code 7" in said and "No module named" in said


def test_no_secret_is_kept(tmp_path: Path) -> None:
    record(tmp_path, 0, RuntimeError("Bearer abcdefgh12345"))
    assert "abcdefgh" not in (tmp_path / "rank-0.error.json").read_text()


def test_attempts_are_numbered_and_a_log_is_shown_once(tmp_path: Path, capsys) -> None:
    first, second = new_attempt(tmp_path), new_attempt(tmp_path)
    assert (first.name, second.name) == ("1", "2")
    echo = Echo(first / "rank-0.log")
    echo.show_new()
    with (first / "rank-0.log").open("a") as log:
        log.write("a bar without an end: 3/7")
        log.flush()
        echo.show_new()
        echo.show_new()
    assert capsys.readouterr().err == "a bar without an end: 3/7"


def test_what_a_process_prints_is_also_in_a_file_until_the_end(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom dpo_dist.training.logs import also_in\n"
        "print('before', flush=True)\n"
        f"with also_in(Path({str(tmp_path / 'log')!r})):\n"
        "    print('in python')\n    os.write(2, b'in C\\n')\n"
        "print('after', flush=True)\n"
        f"with also_in(Path({str(tmp_path / 'log')!r})):\n"
        "    os.write(2, b'its last words\\n')\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    assert (tmp_path / "log").read_text() == "in python\nin C\nits last words\n"
    assert sorted((done.stdout + done.stderr).splitlines()) == sorted(
        ["before", "in python", "in C", "after", "its last words"]
    )


def test_only_rank_0_s_refusals_end_the_command_with_their_own_code(tmp_path: Path) -> None:
    assert refusal(tmp_path) is None
    record(tmp_path, 1, ConfigError("rank 1 cannot refuse"))
    assert refusal(tmp_path) is None
    for number, error in enumerate((Preempted("saved"), DataError("line 3"))):
        (tmp_path / str(number)).mkdir()
        record(tmp_path / str(number), 0, error)
        record(tmp_path / str(number), 0, TrainingDiverged("a consequence"))
        found = refusal(tmp_path / str(number))
        assert found is not None and (found.exit_code, str(found)) == (error.exit_code, str(error))
    (tmp_path / "failed").mkdir()
    record(tmp_path / "failed", 0, TrainingDiverged("loss is nan"))
    assert refusal(tmp_path / "failed") is None
