"""What preflight says where another node does not come; test_nodes.py (integration) has two."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_dist.config.runfile import load_config
from dpo_dist.errors import ConfigError
from dpo_dist.runs.run import Run
from dpo_dist.system.ranks import Nodes
from dpo_dist.tools.doctor.preflight import preflight


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_s_own_fault_is_said_although_the_other_does_not_come(
    rank: int, tmp_path: Path, tiny_model: Path, write_run, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    accelerate = tmp_path / "two.yaml"
    accelerate.write_text("{num_machines: 2, num_processes: 2}\n")
    path = write_run(
        model={"base": str(tiny_model)},
        preferences={"source": "path", "path": "p.jsonl"},
        train={"accelerate_config": str(accelerate)},
    )
    nodes = Nodes(2, rank, "no-such-host.invalid", 29500, "first", join_seconds=0.2)
    with pytest.raises(ConfigError) as raised:
        preflight(Run(load_config(path)), nodes)
    message, at_once = str(raised.value), capsys.readouterr().err
    assert f"node {1 - rank}" in message and "did not join via" in message
    for text in (message, at_once):
        assert "configuration: --main-address no-such-host.invalid: cannot resolve it" in text
