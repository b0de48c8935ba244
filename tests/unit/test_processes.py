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
