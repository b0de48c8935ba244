import os
import signal
import sys
import threading
import time

import pytest

from dpo_dist.processes import run_to_end


def test_the_exit_code_is_the_child_s() -> None:
    assert run_to_end([sys.executable, "-c", "raise SystemExit(7)"]) == 7


def test_ctrl_c_waits_until_the_child_has_cleaned_up(tmp_path, monkeypatch) -> None:
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
