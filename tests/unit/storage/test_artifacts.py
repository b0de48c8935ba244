import json
import multiprocessing
import os
from pathlib import Path

import pytest

from dpo_dist.errors import DataError, DirectoryLocked, FingerprintMismatch
from dpo_dist.storage.artifacts import Journal, phase_directory, read_records, write_json
from dpo_dist.storage.records import Message


def messages(count: int) -> list[Message]:
    return [Message(role="user", content=f"text {n} ü") for n in range(count)]


def test_a_torn_last_line_is_cut_off_and_said(tmp_path: Path, capsys) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, Message) as journal:
        journal.append(messages(3))
    path.write_bytes(path.read_bytes() + b'{"role": "user", "cont')
    with Journal(path, Message) as journal:
        assert list(journal.read()) == messages(3)
        journal.append(messages(1))
        assert list(journal.read()) == messages(3) + messages(1)
    assert "incomplete last line (22 bytes)" in capsys.readouterr().err


def test_a_file_s_name_is_on_the_disk_like_its_bytes(tmp_path: Path, monkeypatch) -> None:
    synced = []

    def fsync(descriptor: int) -> None:
        names = sorted(path.name for path in tmp_path.iterdir())
        synced.append((Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path, names))

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "manifest.json", {})
    assert synced[-1] == (True, ["manifest.json"])
    with Journal(tmp_path / "j.jsonl", Message):
        assert synced[-1] == (True, ["j.jsonl", "manifest.json"])


def test_a_damaged_middle_line_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    lines = [m.model_dump_json() for m in messages(3)]
    path.write_text(lines[0] + "\n" + lines[1][:10] + "\n" + lines[2] + "\n")
    with pytest.raises(DataError, match=rf"{path}:2: damaged record"):
        list(read_records(path, Message))


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    with phase_directory(tmp_path / "p", {"config": {"beta": 0.1, "r": 16}}):
        pass
    with (
        pytest.raises(FingerprintMismatch, match=r"config\.beta: 0\.1 -> 0\.3"),
        phase_directory(tmp_path / "p", {"config": {"beta": 0.3, "r": 16}}),
    ):
        pass


def test_force_moves_the_old_work_aside_and_keeps_it(tmp_path: Path) -> None:
    with phase_directory(tmp_path / "p", {"beta": 0.1}) as out:
        (out.path / "work").write_text("old")
    with phase_directory(tmp_path / "p", {"beta": 0.3}, force=True) as out:
        assert not (out.path / "work").exists()
    assert (tmp_path / "p.old-1" / "work").read_text() == "old"


def _hold(path: Path, ready, release) -> None:
    with phase_directory(path, {}):
        ready.set()
        release.wait(30)


def test_a_second_process_is_turned_away_naming_the_owner(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    owner = context.Process(target=_hold, args=(tmp_path / "p", ready, release))
    owner.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(DirectoryLocked, match=f"process {owner.pid} on "),
            phase_directory(tmp_path / "p", {}),
        ):
            pass
    finally:
        release.set()
        owner.join()
    with phase_directory(tmp_path / "p", {}):
        pass


def test_json_files_are_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": "ü"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": "ü"}
    assert list(tmp_path.iterdir()) == [tmp_path / "x.json"]
