"""QLoRA on the CPU: what is quantized, how exactly, and a training whose reference is the same
quantized base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from peft.tuners import lora
from transformers import AutoModelForCausalLM

from dpo_dist.config import Train
from dpo_dist.errors import ModelError
from dpo_dist.training import lora_linear
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.models import load_policy
from dpo_dist.training.trainer import build_dpo_trainer
from tests.numerics.test_against_trl import logged, rows, sft_adapter
from tests.tiny import make_model
from tests.training_jobs import training_job

bnb = pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
# Appendix E of the paper: the values of the data type.
NEGATIVE = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500)
POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
NF4 = torch.tensor([*NEGATIVE, 0.0, *POSITIVE])


@pytest.fixture(scope="module")
def model_of_64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", hidden=64)


def make_job(model: Path, out: Path, adapter: Path | None = None, **train: object) -> TrainingJob:
    out.mkdir(exist_ok=True)
    Dataset.from_list(rows()).to_parquet(out / "rows.parquet")
    method = {"type": "lora", "r": 4, "alpha": 8, "quantization": "nf4"}
    settings = {
        "method": method,
        "learning_rate": 5e-3,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "bf16": False,
        "kl": {"prompts": 0},
        "save_steps": 1000,
    }
    return training_job(
        out,
        settings=Train(**{**settings, **train}),
        model=str(model),
        adapter=adapter,
        dtype="float32" if not train.get("bf16") else "bfloat16",
        reference_folder=out / "reference",
        seed=11,
    )


def test_the_linear_layers_are_rounded_to_nf4_and_nothing_else(model_of_64, tmp_path) -> None:
    """Against the paper's definition: blocks of 64 weights, scaled to [-1, 1], each rounded to the
    nearest of 16 values. The scales are rounded, too, to 8 bits."""
    model, _ = load_policy(make_job(model_of_64, tmp_path / "out"), CPU)
    plain = AutoModelForCausalLM.from_pretrained(model_of_64, dtype=torch.float32)
    exact = dict(plain.named_modules())
    quantized = 0
    for name, module in model.named_modules():
        if not isinstance(module, bnb.nn.Linear4bit):
            continue
        quantized += 1
        blocks = exact[name].weight.detach().reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        nearest = (blocks / scale)[..., None].sub(NF4).abs().argmin(-1)
        found = bnb.functional.dequantize_4bit(module.weight, module.weight.quant_state)
        found = found.reshape(-1, 64)
        rounded = found.abs().amax(1, keepdim=True)  # each block has a 1 or a -1
        assert torch.allclose(found / rounded, NF4[nearest], atol=1e-5)
        assert (rounded / scale - 1).abs().max() < 0.1
        error = (found - blocks).square().mean().sqrt() / blocks.square().mean().sqrt()
        assert 0.085 < error < 0.1  # docs/trainer.md: about 9 %
        assert module.weight.dtype == torch.float32, "stored as the other weights are"
    assert quantized == 2 * 7
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    for name, weight in plain.named_parameters():
        if "proj" not in name:
            assert torch.equal(model.get_parameter(name), weight), name


@pytest.mark.slow
@pytest.mark.parametrize(("from_adapter", "bf16"), [(False, True), (True, False)])
def test_a_training_starts_at_its_reference_and_learns(
    model_of_64: Path, tmp_path: Path, from_adapter: bool, bf16: bool
) -> None:
    """The gate checks the first loss: the reference is the quantized base, with the SFT adapter if
    there is one. The cached values are those of the model with its adapters off."""
    adapter = sft_adapter(model_of_64, tmp_path / "sft") if from_adapter else None
    job = make_job(model_of_64, tmp_path / "out", adapter, bf16=bf16)
    trainer = build_dpo_trainer(job)
    lora_linear.install(trainer.model)
    layers = [m for m in trainer.model.modules() if isinstance(m, lora.LoraLayer)]
    assert layers and all(isinstance(m, lora.bnb.Linear4bit) for m in layers)
    assert "_forward" not in {getattr(m.forward, "__name__", "") for m in layers}, "left to PEFT"
    trained = {n: w for n, w in trainer.model.named_parameters() if w.requires_grad}
    assert trained and {w.dtype for w in trained.values()} == {torch.float32}
    if adapter:  # exactly the SFT adapter, not rounded to bfloat16 by TRL
        reference = dict(trainer.model.named_parameters())
        for name, weight in trained.items():
            assert torch.equal(weight, reference[name.replace(".default.", ".ref.")])
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    losses = [line["loss"] for line in logged(trainer)]
    assert losses[0] == pytest.approx(0.6931, abs=2e-2 if bf16 else 1e-4)
    assert losses[-1] < losses[0] - 0.01
    assert all(not torch.equal(before[n], w) for n, w in trained.items()), "every adapter moves"


def test_gradients_reach_every_adapter_after_a_validation(model_of_64, tmp_path) -> None:
    """bitsandbytes would repack the weights for a kernel without a backward in the first forward
    without gradients (AVX512-BF16)."""
    adapter = sft_adapter(model_of_64, tmp_path / "sft")
    model, _ = load_policy(make_job(model_of_64, tmp_path / "out", adapter, bf16=True), CPU)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        evaluated = model.eval()(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        trained = model.train()(ids).logits
    trained.float().sum().backward()
    gradients = {n: w.grad for n, w in model.named_parameters() if w.requires_grad}
    assert all(g is not None and g.abs().sum() > 0 for g in gradients.values())
    assert torch.equal(evaluated, trained), "and both round alike"


def test_a_width_that_the_cpu_s_kernel_gets_wrong_is_refused(tiny_model, tmp_path) -> None:
    with pytest.raises(ModelError, match="q_proj has 32 inputs: on a CPU"):
        load_policy(make_job(tiny_model, tmp_path / "out"), CPU)


@pytest.mark.slow
def test_the_reference_of_a_quantized_base_is_cached_apart(model_of_64, tmp_path) -> None:
    names = set()
    for quantization in ("nf4", None):
        method = {"type": "lora", "r": 4, "alpha": 8, "quantization": quantization}
        job = make_job(model_of_64, tmp_path / "out", method=method)
        logged(build_dpo_trainer(job))
        names |= {path.name for path in job.reference_folder.glob("*.jsonl")}
    assert len(names) == 2
    files = [tmp_path / "out" / "reference" / name for name in names]
    first = [json.loads(file.read_text().splitlines()[0])["chosen"] for file in files]
    assert first[0] != pytest.approx(first[1], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_checkpointing_changes_no_gradient(model_of_64, tmp_path, checkpointing) -> None:
    found = []
    for kind in ("none", checkpointing):
        job = make_job(model_of_64, tmp_path / kind, gradient_checkpointing=kind)
        found.append([line["loss"] for line in logged(build_dpo_trainer(job))])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.slow
def test_an_adapter_is_added_to_the_unquantized_base(model_of_64, tmp_path) -> None:
    """As evaluate, merge and publish do: the same adapter, without the base's rounding."""
    from dpo_dist.training.merging import merge_adapter

    job = make_job(model_of_64, tmp_path / "out")
    trainer = build_dpo_trainer(job)
    logged(trainer)
    trainer.save_model(str(tmp_path / "adapter"))
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "quantization" not in json.dumps(saved)
    merge_adapter(str(model_of_64), tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(model_of_64, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapted(ids).logits, atol=1e-4)
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())
