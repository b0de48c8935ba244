"""Two rounds of iterative DPO on a tiny model, with either reference; killed between, resumed."""

from __future__ import annotations

import io
import json
import math
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import yaml

from dpo_dist.cli import main
from dpo_dist.config import Full
from dpo_dist.config.runfile import load_config
from dpo_dist.errors import TrainingDiverged
from dpo_dist.runs.run import Run
from dpo_dist.storage.artifacts import read_records, write_records
from dpo_dist.storage.records import Candidate, Generation
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.merging import merge_adapter
from dpo_dist.training.reference import ReferenceCache, reference_job, reference_key
from tests.conftest import ROOT
from tests.in_process import Killed, in_this_process
from tests.integration.conftest import ANSWERS

ROUNDS, BETA = 2, 0.2
HELD_OUT = 6


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory, taught_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("rounds")

    def write(name: str, rows: list[dict[str, Any]]) -> dict[str, str]:
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"path": name}

    (folder / "schema.json").write_text('{"type": "integer"}')
    metrics = [{"type": "json_schema", "label": "Format", "schema_path": "schema.json"}]
    batch = {
        "bf16": False,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "accelerate_config": str(ROOT / "accelerate_configs" / "cpu.yaml"),
    }
    engine = {"type": "hf", "max_model_len": 128, "batch_size": 16}
    sections = {
        "run": {"name": "previous", "output_dir": str(folder / "runs")},
        "model": {"base": str(taught_model), "sft": "phase", "dtype": "float32"},
        "sft": {
            "data": write(
                "sft.jsonl",
                [{"prompt": f"ask {n}", "completion": ANSWERS[n % 2]} for n in range(24)],
            ),
            "learning_rate": 2e-3,
            **batch,
        },
        "sample": {
            "prompts": write("prompts.jsonl", [{"prompt": f"question {n}"} for n in range(24)]),
            "engine": engine,
            "slots": [{"temperature": 1.0}, {"temperature": 1.0}],
            "max_new_tokens": 8,
        },
        "judge": {"judge": {"type": "metric", "metrics": metrics}, "canaries": None},
        "preferences": {"source": "judged", "validation_fraction": 0.5},
        "train": {
            "beta": BETA,
            "learning_rate": 1e-3,
            "num_epochs": 2,
            "max_length": 128,
            "eval_per_epoch": 1,
            "kl": {"prompts": 2, "max_new_tokens": 8, "max_share": 100},
            **batch,
        },
        "rounds": {"count": ROUNDS, "prompts": "all"},
        "evaluate": {
            "prompts": write("eval.jsonl", [{"prompt": f"held out {n}"} for n in range(HELD_OUT)]),
            "decodings": [{"temperature": 1.0}],
            "max_new_tokens": 8,
            "metrics": metrics,
            "judge": {"type": "metric", "metrics": metrics},
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def finish(run_file: Path, *overrides: str) -> str:
    """Run to the end and return what was printed."""
    with in_this_process(), redirect_stderr(io.StringIO()) as said:
        assert main(words(run_file, *overrides)) == 0, said.getvalue()[-4000:]
    return said.getvalue()


def words(run_file: Path, *overrides: str) -> list[str]:
    return ["run", str(run_file), *(f"--set={override}" for override in overrides)]


@pytest.fixture(scope="module")
def finished(run_file: Path) -> tuple[Path, str]:
    """The directory of a run that was killed between its rounds, and what its second start
    printed."""
    root = run_file.parent / "runs" / "previous"
    with pytest.raises(Killed), in_this_process(killed_before=("sample", 2)):
        main(words(run_file))
    assert (root / "round-1" / "evaluate" / "manifest.json").exists()
    assert not (root / "round-2" / "sample" / "manifest.json").exists()
    return root, finish(run_file)


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def fingerprint(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "fingerprint.json").read_text())["inputs"]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_round_starts_from_what_the_one_before_has_trained(
    finished: tuple[Path, str], run_file: Path
) -> None:
    root, said = finished
    assert said.count("already done") == 5, "the first round and the SFT model"
    run = Run(load_config(run_file))
    first, second = run.rounds()
    one, two = root / "round-1", root / "round-2"
    sft, trained = run.weights("sft").identity(), first.weights("dpo").identity()
    assert len({str(sft), str(trained), str(second.weights("dpo").identity())}) == 3
    for folder, start in ((one, sft), (two, trained)):
        assert fingerprint(folder / "sample")["weights"] == start
        assert fingerprint(folder / "train")["weights"] == start
        assert "reference" not in fingerprint(folder / "train")
        assert fingerprint(folder / "evaluate")["weights"]["sft"] == sft
        losses = [line["loss"] for line in metrics(folder / "train") if "loss" in line]
        start_loss = metrics(folder / "train")[0]["eval_loss"]
        assert start_loss == pytest.approx(math.log(2), abs=1e-5)
        assert len(losses) >= 2
    texts = [
        [c.text for c in read_records(folder / "sample" / "candidates.jsonl", Candidate)]
        for folder in (one, two)
    ]
    assert len(texts[0]) == len(texts[1]) and texts[0] != texts[1]


@pytest.mark.slow
def test_base_and_sft_answer_once(finished: tuple[Path, str]) -> None:
    root, _ = finished
    by_round = []
    for number in (1, 2):
        folder = root / f"round-{number}" / "evaluate"
        answers = list(read_records(folder / "generations.jsonl", Generation))
        by_round.append({(g.arm, g.prompt_id): g for g in answers})
        assert manifest(folder)["generations"] == len(answers) == 3 * HELD_OUT
    taken_over = [manifest(root / f"round-{n}" / "evaluate")["taken_over"] for n in (1, 2)]
    assert taken_over == [0, 2 * HELD_OUT]
    same = {key[0] for key, answer in by_round[1].items() if by_round[0][key] == answer}
    assert {"base", "sft"} <= same
    assert any(by_round[0][key] != answer for key, answer in by_round[1].items())


@pytest.mark.slow
def test_the_report_shows_every_round(finished: tuple[Path, str]) -> None:
    root, _ = finished
    report = json.loads((root / "report" / "report.json").read_text())
    first, second = report["rounds"]
    assert (first["round"], first["training"]["reference"]) == (1, "SFT")
    assert (second["round"], second["training"]["reference"]) == (2, "round 1")
    for number, figures in enumerate((first, second), start=1):
        folder = root / f"round-{number}"
        scores = json.loads((folder / "evaluate" / "scores.json").read_text())
        preferred = figures["evaluation"]["preferred"]
        assert preferred == scores["preferred"] and preferred["n"] == HELD_OUT
        assert figures["pairs"] == manifest(folder / "judge")["counts"]["kept"]
        assert figures["training"]["kl"]["per_token"] > 0
        assert [step["phase"] for step in figures["funnel"]] == ["sample", "judge", "train"]
    comparison = {"schema_version": report["schema_version"], **report["comparison"]}
    assert comparison == json.loads((root / "round-2" / "evaluate" / "scores.json").read_text())
    page = (root / "report" / "report.html").read_text()
    assert "<h2>Rounds</h2>" in page and page.count("Round 1<") == page.count("Round 2<") == 1
    assert "## Rounds" in (root / "report" / "report.md").read_text()


INITIAL = ("run.name=initial", "rounds.reference=initial")


@pytest.fixture(scope="module")
def from_initial(finished: tuple[Path, str], run_file: Path) -> tuple[Path, str]:
    """The same run with the other reference; its first round is a copy."""
    before, _ = finished
    root = before.with_name("initial")
    shutil.copytree(before, root, ignore=shutil.ignore_patterns("round-2", "report"))
    return root, finish(run_file, *INITIAL)


@pytest.mark.slow
def test_the_initial_reference_is_the_sft_model_in_every_round(
    from_initial: tuple[Path, str], run_file: Path
) -> None:
    root, said = from_initial
    assert said.count("already done") == 5, "the first round is the same with either reference"
    config = load_config(run_file, INITIAL)
    sft = Run(config).weights("sft")
    two = root / "round-2" / "train"
    assert fingerprint(two)["reference"] == sft.identity() != fingerprint(two)["weights"]

    import pyarrow.parquet

    key = reference_key(sft.identity(), "torch.float32 fp32", None)
    cached = ReferenceCache(config.run.output_dir / "reference_logps" / f"{key}.jsonl").read()
    margins, from_base = {}, []
    for split in ("train", "validation"):
        rows = pyarrow.parquet.read_table(two / "tokens" / f"{split}.parquet").to_pylist()
        initial = [independent_log_probs(sft.model, sft.adapter, row) for row in rows]
        start = [
            independent_log_probs(sft.model, root / "round-1" / "train" / "model", row)
            for row in rows
        ]
        for row, (chosen, rejected) in zip(rows, initial, strict=True):
            assert cached[row["row"]].chosen == pytest.approx(chosen, abs=2e-3)
            assert cached[row["row"]].rejected == pytest.approx(rejected, abs=2e-3)
            from_base.append(independent_log_probs(sft.model, None, row)[0] - chosen)
        margins[split] = [
            (s[0] - r[0]) - (s[1] - r[1]) for s, r in zip(start, initial, strict=True)
        ]
    assert min(map(abs, from_base)) > 2e-2, "the base would have been another reference"
    expected = [math.log1p(math.exp(-BETA * margin)) for margin in margins["validation"]]
    first = metrics(two)[0]
    assert first["eval_loss"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert abs(first["eval_loss"] - math.log(2)) > 1e-3, "the policy has left the reference"
    # Its own answers are measured against the SFT model, too: at the start it is not there.
    assert next(line["kl/per_token"] for line in metrics(two) if "kl/per_token" in line) > 1e-6
    assert not (two / "model" / "initial").exists() and not (two / "model" / "ref").exists()
    report = json.loads((root / "report" / "report.json").read_text())
    assert [f["training"]["reference"] for f in report["rounds"]] == ["SFT", "SFT"]


def tampered(job: TrainingJob, weights: dict[str, Any], folder: Path) -> TrainingJob:
    """The job with a cache in which the chosen answers of some weights are a nat likelier."""
    assert job.reference_folder is not None
    logps = shutil.copytree(job.reference_folder, folder / "logps")
    path = logps / f"{reference_key(weights, 'torch.float32 fp32', None)}.jsonl"
    values = [
        v.model_copy(update={"chosen": v.chosen + 1}) for v in ReferenceCache(path).read().values()
    ]
    write_records(path, values)
    return job.model_copy(update={"out": folder, "reference_folder": logps})


@pytest.mark.slow
def test_wrong_log_probs_of_the_reference_are_stopped_before_the_first_update(
    from_initial: tuple[Path, str], tmp_path: Path
) -> None:
    from dpo_dist.training.trainer import train

    root, _ = from_initial
    text = (root / "round-2" / "train" / "job.json").read_text()
    job = TrainingJob.model_validate_json(text)
    assert job.reference is not None
    own = reference_job(tampered(job, job.reference.identity, tmp_path / "reference"))
    with pytest.raises(TrainingDiverged, match="the reference's stored log-probs disagree"):
        train(own, Event())


@pytest.mark.slow
def test_all_weights_are_held_to_the_same_reference(
    from_initial: tuple[Path, str], tmp_path: Path
) -> None:
    """Another way to load policy and reference: two whole models, their adapters merged, as the
    phase does it."""
    from dpo_dist.training.trainer import train

    round_2 = from_initial[0] / "round-2" / "train"
    job = TrainingJob.model_validate_json((round_2 / "job.json").read_text())
    settings = job.settings.model_copy(update={"method": Full(), "learning_rate": 1e-4})
    assert job.adapter and job.reference and job.reference.adapter
    for name, adapter in (("start", job.adapter), ("reference", job.reference.adapter)):
        merge_adapter(job.model, adapter, tmp_path / name, dtype="float32")
    other = {"model": str(tmp_path / "reference"), "adapter": None}
    changes = {
        "settings": settings,
        "out": tmp_path,
        "reference_folder": tmp_path / "logps",
        "model": str(tmp_path / "start"),
        "adapter": None,
        "reference": job.reference.model_copy(update=other),
    }
    job = job.model_copy(update=changes)
    train(reference_job(job), Event())
    train(job, Event())
    for key in ("eval_loss", "kl/per_token"):
        merged, adapted = (
            next(line[key] for line in metrics(folder) if key in line)
            for folder in (tmp_path, round_2)
        )
        assert merged == pytest.approx(adapted, abs=1e-5)


def independent_log_probs(
    model: str, adapter: Path | None, row: dict[str, Any]
) -> tuple[float, float]:
    """By the definition, one answer at a time, with the libraries alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    if adapter is not None:
        policy = PeftModel.from_pretrained(policy, str(adapter)).eval()
    found = []
    for name in ("chosen", "rejected"):
        prompt, answer = row["prompt_ids"], row[f"{name}_ids"]
        with torch.no_grad():
            logits = policy(input_ids=torch.tensor([prompt + answer])).logits[0]
        logps = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        found.append(float(logps.gather(1, torch.tensor(answer)[:, None]).sum()))
    return found[0], found[1]
