import pytest

from dpo_dist.system import ranks
from dpo_dist.system.console import progress, say, scrub


def test_secrets_are_scrubbed_by_shape_and_by_value(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "plain-looking")
    text = scrub("sk-ant-api03-abc_DEF and plain-looking and Authorization: Bearer abc.def-12345")
    assert text == "<secret> and <WANDB_API_KEY> and Authorization: Bearer <secret>"
    assert scrub("nothing to hide") == "nothing to hide"


def test_only_rank_0_speaks(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    say("hidden")
    with progress("p", 3) as advance:
        advance(1)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    say("shown")
    assert capsys.readouterr().err == "shown\n"


def test_a_resumed_bar_starts_where_it_stopped(capsys) -> None:
    with progress("sample", 10, done=4) as advance:
        advance(6, "half way")
    assert "10/10" in capsys.readouterr().err


def test_the_launcher_s_variables_are_forgotten(monkeypatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "PET_NNODES", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HOME_SWEET_HOME", "1")
    ranks.strip_launcher_variables()
    import os

    assert "HOME_SWEET_HOME" in os.environ
    assert not {"RANK", "MASTER_ADDR", "PET_NNODES"} & set(os.environ)
    assert ranks.world_size() == 1 and ranks.is_main()
    with pytest.raises(KeyError):
        os.environ["TORCHELASTIC_RUN_ID"]
