import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dpo_dist.system import processes
from dpo_dist.system.processes import run_to_end


def test_the_exit_code_is_the_child_s() -> None:
    assert run_to_end([sys.executable, "-c", "raise SystemExit(7)"]) == 7


def test_ctrl_c_waits_until_the_child_has_cleaned_up(tmp_path, monkeypatch) -> None:
    wait, *more = processes._SIGNALS
    monkeypatch.setattr(processes, "_SIGNALS", ((0.5, wait[1]), *more))
    program = (
        "import pathlib, time\n"
        "pathlib.Path('ready').touch()\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt: time.sleep(1); pathlib.Path('clean').touch()\n"
    )
    monkeypatch.chdir(tmp_path)

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_to_end([sys.executable, "-c", program])
    assert (tmp_path / "clean").exists()


def test_sigterm_is_passed_on_and_the_child_s_own_end_waited_for(tmp_path, monkeypatch) -> None:
    program = (
        "import pathlib, signal, time\n"
        "def stop(*_):\n"
        "    time.sleep(1); pathlib.Path('saved').touch(); raise SystemExit(75)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)

    def terminate() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=terminate).start()
    assert run_to_end([sys.executable, "-c", program]) == 75
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_written_goes_to_a_file_and_a_look_that_raises_ends_the_child(tmp_path) -> None:
    started = time.monotonic()

    def look() -> None:
        if (tmp_path / "log").read_text() == "hello\n":
            raise ValueError("enough")

    program = "import time; print('hello', flush=True); time.sleep(60)"
    with pytest.raises(ValueError, match="enough"):
        run_to_end([sys.executable, "-c", program], output=tmp_path / "log", look=look)
    assert time.monotonic() - started < 30


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_in_a_session_of_its_own_ends_with_its_parent(tmp_path) -> None:
    child = (
        "import os, time; from dpo_dist.system.processes import die_with_parent; "
        "die_with_parent(); "
        "open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys; "
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True).wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    process.kill()
    process.wait()
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


ENGINE = """
import multiprocessing, sys, time
from dpo_dist.cli import main
from dpo_dist.system.processes import end_children_with_this

if __name__ == "__main__":
    end_children_with_this()
    context = multiprocessing.get_context(sys.argv[1])
    child = context.Process(target=time.sleep, args=(60,))
    child.start()
    print(child.pid, flush=True)
    child.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_core_of_a_killed_engine_ends_with_it(tmp_path: Path, method: str) -> None:
    """As vLLM starts it. A restarted worker would find the GPU's memory taken."""
    script = tmp_path / "dpo-dist"
    script.write_text(ENGINE)
    surroundings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    words = [sys.executable, str(script), method]
    with subprocess.Popen(words, env=surroundings, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        # A spawned one can only end with its parent once it has imported the main module.
        time.sleep(2 if method == "spawn" else 0.2)
        assert alive(child)
        process.kill()
    deadline = time.monotonic() + 5
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
