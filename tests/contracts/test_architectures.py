"""The causal LMs of transformers: our loss is stock TRL's, in the layout of docs/trainer.md.

Small models with random weights, in float32. The policy and its reference differ, so that the loss
depends on every token. Both trainers get the same rows; TRL's is otherwise its own.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trl import DPOConfig

from dpo_dist.config import Train
from dpo_dist.data.chat import load_tokenizer
from dpo_dist.estimates.memory import ModelShape
from dpo_dist.training.layout import why_not_packed
from dpo_dist.training.models import choose_layout
from dpo_dist.training.preference_trainer import PairCollator, PreferenceTrainer
from tests.numerics.pairs import VOCABULARY
from tests.numerics.test_against_trl import StockTrainer, make_job, rows

DOCUMENT = Path(__file__).parents[2] / "docs" / "trainer.md"
# Every configuration ignores the names that it does not have.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
LATENT = {  # MLA: keys and values of different sizes, made from a latent vector
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
OWN: dict[str, dict[str, Any]] = {
    "axk1": LATENT | ROUTED,
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "codegen": GPT | {"rotary_dim": 4},
    "ctrl": GPT | {"dff": 48},
    "deepseek_v2": LATENT | ROUTED,
    "deepseek_v3": LATENT | ROUTED,
    "deepseek_v32": LATENT | ROUTED | {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 8},
    "dots1": ROUTED | {"n_shared_experts": 1},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2},
    "falcon": {"head_dim": None},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "gemma2": {"query_pre_attn_scalar": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 0,
    },
    "gemma4_unified_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": 16,
    },
    "glm4_moe": ROUTED,
    "glm4_moe_lite": LATENT | ROUTED,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gptj": GPT | {"rotary_dim": 4},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"]},
    "hy_v3": ROUTED,
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "mamba_d_state": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": LATENT | ROUTED,
    "mamba": {"state_size": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16},
    "mimo_v2_flash": {"v_head_dim": 12, **ROUTED},
    "minicpm3": LATENT,
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "olmo3": {"layer_types": ["sliding_attention", "full_attention"]},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phimoe": {"router_jitter_noise": 0.0},  # its training routes at random otherwise
    "qwen2_moe": {"shared_expert_intermediate_size": 16},
    "qwen3_5_moe_text": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR,
    "recurrent_gemma": {"lru_width": 32, "block_types": ["recurrent", "attention"]},
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
    "solar_open": ROUTED,
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "xlstm": {"num_heads": 4, "num_blocks": 2, "embedding_dim": 32, "chunk_size": 16},
    "youtu": LATENT,
}


def config_of(kind: str) -> Any:
    own = SIZES | OWN.get(kind, {})
    config = AutoConfig.for_model(kind, **{n: v for n, v in own.items() if v is not None})
    for name, value in vars(config).items():
        if isinstance(value, float) and name.endswith(("dropout", "pdrop", "dropout_prob")):
            setattr(config, name, 0.0)  # stock TRL disables `torch.nn.Dropout` only
    return config


def model_of(kind: str) -> Any:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config_of(kind))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")  # as `load_policy` does; TRL leaves it to the user
    return model


def documented() -> dict[str, str]:
    """The layout of each architecture in the document: `packed`, or why not."""
    table = re.search(r"## Architectures\n(.*?)\n## ", DOCUMENT.read_text(), re.DOTALL)
    assert table is not None
    found: dict[str, str] = {}
    for line in table[1].splitlines():
        if "`" in line and line.startswith("| pa"):
            _, layout, names, _ = line.split("|")
            for name in re.findall(r"`([\w.-]+)`", names):
                assert name not in found, f"{name} twice"
                found[name] = layout.strip()
    return found


KINDS = documented()


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset.from_list(rows()[2:6])


@pytest.fixture(scope="module")
def compare(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Any:
    """(stock, ours): what the two trainers find for the same micro-batch of a model."""
    out = tmp_path_factory.mktemp("out")
    tokenizer = load_tokenizer(str(tiny_model))

    def found(trainer: Any, model: Any, collator: PairCollator) -> dict[str, float]:
        trainer.state.global_step = 1  # the first loss need not be that of two equal models
        batch = collator([dict(row) for row in data])
        if type(trainer) is StockTrainer:
            batch.pop("rows")
        torch.manual_seed(0)
        loss = trainer.compute_loss(model.train(), batch)
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
        metrics = trainer._metrics["train"]
        aux = metrics["aux_loss"][-1] if trainer.aux_loss_enabled else 0.0
        return {
            "loss": loss.item() - trainer.router_aux_loss_coef * aux,
            "aux_loss": aux,
            "chosen": metrics["logps/chosen"][-1],
            "rejected": metrics["logps/rejected"][-1],
        }

    def both(model: Any, layout: str = "auto") -> tuple[dict[str, float], dict[str, float]]:
        settings = Train(layout=layout, reference="live", bf16=False, kl={"prompts": 0})
        results = []
        for stock in (True, False):
            policy, reference = copy.deepcopy(model), copy.deepcopy(model)
            torch.manual_seed(2)
            with torch.no_grad():
                for parameter in reference.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
            packed = not stock and choose_layout(policy, settings)
            arguments = {
                "model": policy,
                "ref_model": reference,
                "train_dataset": data,
                "processing_class": tokenizer,
                "data_collator": (collator := PairCollator(pad_token_id=0, packed=packed)),
                "args": DPOConfig(
                    output_dir=str(out),
                    bf16=False,
                    use_cpu=True,
                    report_to="none",
                    disable_tqdm=True,
                    gradient_checkpointing=False,
                    remove_unused_columns=False,
                ),
            }
            if stock:
                trainer = StockTrainer(settings=settings, **arguments)
            else:
                job = make_job(tiny_model, out, None, settings)
                trainer = PreferenceTrainer(job=job, packed=packed, **arguments)
            results.append(found(trainer, policy, collator))
        return results[0], results[1]

    return both


def same(ours: dict[str, float], stock: dict[str, float], *names: str) -> None:
    for name in names:
        assert ours[name] == pytest.approx(stock[name], rel=1e-6, abs=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_trl_s_in_the_documented_layout(kind: str, compare: Any) -> None:
    assert kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    model = model_of(kind)
    ModelShape.of(model.config)
    reason = why_not_packed(model)
    layout = "packed" if reason is None else f"padded: {reason.removeprefix(kind + ' ')}"
    assert layout == KINDS[kind]
    stock, ours = compare(model)
    assert abs(stock["loss"] - 0.6931) > 1e-3, "policy and reference differ"
    assert stock["chosen"] != stock["rejected"]
    same(ours, stock, "loss", "chosen", "rejected")
    assert (ours["aux_loss"] > 0) == (stock["aux_loss"] > 0)
    if layout != "packed":
        same(ours, stock, "aux_loss")


def router_loss(model: Any, examples: list[dict[str, Any]]) -> torch.Tensor:
    """The load-balancing loss by its definition (Switch Transformers, eq. 4-6), from every row
    alone: experts x sum of (share of the choices x mean probability), over all layers' positions.
    What both rows begin with counts once, but its last position, which predicts two tokens, counts
    twice; a row's last position, which predicts nothing, does not count."""
    chosen_shares, probabilities = [], []
    config = model.config
    for example in examples:
        pair = [example["prompt_ids"] + example[name] for name in ("chosen_ids", "rejected_ids")]
        shared = [a == b for a, b in zip(*pair, strict=False)].index(False)
        for first, ids in zip((0, shared - 1), pair, strict=True):
            row = torch.tensor([ids])
            outputs = model.base_model(input_ids=row, use_cache=False, output_router_logits=True)
            for logits in outputs.router_logits:
                scores = logits[first : row.shape[1] - 1].softmax(-1)
                top = scores.topk(config.num_experts_per_tok).indices
                chosen_shares.append(torch.nn.functional.one_hot(top, config.num_experts).sum(1))
                probabilities.append(scores)
    shares, mean = torch.cat(chosen_shares).float().mean(0), torch.cat(probabilities).mean(0)
    return config.num_experts * (shares * mean).sum()


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "olmoe"])
def test_the_router_loss_counts_a_prompt_once(kind: str, compare: Any, data: Dataset) -> None:
    """On packed rows; on padded ones it is TRL's, with every prompt twice."""
    model = model_of(kind)
    stock, packed = compare(model)
    expected = router_loss(model, list(data)).item()
    assert packed["aux_loss"] == pytest.approx(expected, abs=1e-5)
    assert abs(stock["aux_loss"] - expected) > 1e-4, "the two ways to count differ"
    stock, padded = compare(model, "padded")
    same(padded, stock, "loss", "aux_loss", "chosen", "rejected")
