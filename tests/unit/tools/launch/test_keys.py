"""Every target hands its jobs the keys that the run uses, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dpo_dist.tools.launch.compose import Compose
from dpo_dist.tools.launch.kubernetes.target import Kubernetes
from dpo_dist.tools.launch.render import Target
from dpo_dist.tools.launch.skypilot import SkyPilot
from tests.conftest import ROOT
from tests.unit.tools.launch.runs import ZERO2, layout

JUDGE = (
    "{type: openai_compatible, model: m, base_url: 'https://judge.example/v1', rubric: r.md, "
    "api_key_variable: JUDGE_KEY}"
)
SCORER = "{type: openai_compatible, model: m, base_url: 'https://other.example/v1', rubric: r.md}"
SERVERS = "{type: vllm_server, urls: ['http://gpu-1:8000'], api_key_variable: SERVER_KEY}"
CLAUDE = "{type: claude, model: claude-opus-4-7, rubric: r.md}"
EVERYTHING = (
    f"judge.judge={JUDGE}",
    f"evaluate.judge={CLAUDE}",
    f"evaluate.judge_scores=[{{judge: {SCORER}}}]",
    f"sample.engine={SERVERS}",
    "train.args={report_to: [wandb]}",
)
ALL = {
    *("ANTHROPIC_API_KEY", "HF_TOKEN", "JUDGE_KEY"),
    *("OPENAI_API_KEY", "SERVER_KEY", "WANDB_API_KEY"),
}


def handed_over(target: Target, *overrides: str) -> set[str]:
    """The names of keys in the files of a target."""
    more = {"nodes": 1, "gpus_per_node": 1, "workdir": Path("/workspace"), "yes": True}
    settings = [
        f"{phase}.accelerate_config={ROOT}/accelerate_configs/zero2.yaml"
        for phase in ("sft", "train")
    ]
    files = target.files(layout(*ZERO2, *settings, *overrides, **more))
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    found = [name for text in texts for name in _names(list(yaml.safe_load_all(text)))]
    return {name for name in found if name.endswith(("_KEY", "_TOKEN"))}


def _names(value: object) -> list[str]:
    if isinstance(value, dict):
        named = [value["name"]] if isinstance(value.get("name"), str) else []
        return named + [n for key, inner in value.items() for n in (str(key), *_names(inner))]
    return [n for inner in value for n in _names(inner)] if isinstance(value, list) else []


@pytest.mark.parametrize(
    "target",
    [
        Compose(image="dpo-dist:0.1.0", cpu_image="dpo-dist:0.1.0-cpu"),
        Kubernetes(image="dpo-dist:0.1.0"),
        SkyPilot(gpu="H100", volume="runs"),
    ],
    ids=lambda target: target.name,
)
def test_jobs_get_the_keys_that_the_run_uses(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert handed_over(target, *EVERYTHING) == ALL
    assert handed_over(target) == {"HF_TOKEN"}
    if isinstance(target, SkyPilot):
        monkeypatch.setenv("JUDGE_KEY", "x")
        command = target.submission(Path("x"), layout(*EVERYTHING, yes=True))
        assert command[3:5] == ["--secret", "JUDGE_KEY"]
