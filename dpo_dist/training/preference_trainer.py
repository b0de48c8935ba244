"""TRL's `DPOTrainer` on our rows: packed, balanced, with cached log-probs of the reference.

TRL implements losses, metrics, the reference adapter and saving. This module overrides the
collator, the sampler, the forward (`layout.install`) and the reference's log-probs, and it checks
every loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from dpo_dist.config import Train
from dpo_dist.training import Batch, CausalLM, Metrics, Trainer, attention, lora_linear
from dpo_dist.training.divergence import policy_and_reference, sample_divergence, share, summarise
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.kl_share import KlShare
from dpo_dist.training.layout import install
from dpo_dist.training.models import INITIAL
from dpo_dist.training.monitors import check_finite
from dpo_dist.training.packing import plan_packing
from dpo_dist.training.reference import ReferenceLogProbs
from dpo_dist.training.reference_pass import ReferencePass
from dpo_dist.training.sampler import GlobalBatchSampler
from dpo_dist.training.sharded import prepare_frozen, set_precision
from dpo_dist.training.start_check import COMPLETIONS, FirstBatch

KL_BATCH = 16  # answers that are sampled together


@dataclass
class PairCollator(DataCollatorForPreference):  # type: ignore[misc]  # TRL is not typed
    """TRL's padded batch with the pairs' ids as `rows`, the log-probs of the `reference` if these
    are known, the engine's log-probs of both answers as `witness` (2, pairs; NaN for none) and, if
    `packed`, a `PackPlan` as `pack`.

    `reference` has the log-probs by row key. The trainer fills it before the first step.
    """

    packed: bool = True
    reference: dict[str, ReferenceLogProbs] = field(default_factory=dict)

    def torch_call(self, examples: list[Batch]) -> Batch:
        batch: Batch = super().torch_call(examples)
        batch["rows"] = [example["id"] for example in examples]
        if self.reference:
            known = [self.reference[example["row"]] for example in examples]
            batch["ref_chosen_logps"] = torch.tensor([logps.chosen for logps in known])
            batch["ref_rejected_logps"] = torch.tensor([logps.rejected for logps in known])
        batch["witness"] = torch.tensor(
            [
                [example.get(f"{which}_witness", math.nan) for example in examples]
                for which in COMPLETIONS
            ],
            dtype=torch.float64,
        )
        if self.packed:
            pairs = len(examples)  # TRL stacks all chosen rows, then all rejected ones
            batch["pack"] = plan_packing(
                batch["input_ids"],
                batch["attention_mask"],
                batch["completion_mask"],
                [(pair, pair + pairs) for pair in range(pairs)],
            )
        return batch


class PreferenceTrainer(DPOTrainer):  # type: ignore[misc]  # TRL is not typed
    """Trains on rows of `id, row, tokens, prompt_ids, chosen_ids, rejected_ids`.

    Before the first step, `ReferencePass` gets the reference's log-probs.
    """

    def __init__(
        self,
        *,
        job: TrainingJob,
        packed: bool,
        args: DPOConfig,
        ref_model: CausalLM | None = None,
        **kwargs: object,
    ) -> None:
        assert isinstance(job.settings, Train)
        self._job = job
        self._settings = job.settings
        self._packed = packed
        self._started = False
        self._kl_share = KlShare(self._settings.kl.max_share)
        self._trained_tokens = 0
        # (log-probs, tokens) summed since the last log, by mode and completion.
        self._sums: dict[tuple[str, str], tuple[float, float]] = {}
        # TRL would hash the whole model for a cache of its own, and compute the log-probs now, with
        # a policy that is not sharded yet.
        args.precompute_ref_log_probs = False
        with _without_second_model():
            super().__init__(args=args, **kwargs)
        self.precompute_ref_logps = self._settings.reference == "cached"
        set_precision(self.accelerator)
        if ref_model is not None:
            disable_dropout_in_model(ref_model)
            add_fused_lm_head(ref_model)
            self.ref_model = prepare_frozen(ref_model, self.accelerator)
        self._wrap_forwards()
        if self.precompute_ref_logps:
            self.add_callback(ReferencePass(self))

    def _wrap_forwards(self) -> None:
        """Wrap the forwards of policy and reference, after TRL has added its fused head."""
        lora_linear.install(self.model)
        for wrapped in (self.model, self.ref_model):
            if wrapped is not None:
                model = self.accelerator.unwrap_model(wrapped)
                if self._packed and model.config._attn_implementation != attention.NAME:
                    model.set_attn_implementation(attention.NAME)
                if install(model) and wrapped is self.ref_model:
                    # Already prepared by accelerate, so its autocast is inside our forward.
                    model.forward = self.accelerator.autocast()(model.forward)

    def _prepare_dataset(self, dataset: Dataset, *args: object, **kwargs: object) -> Dataset:
        return dataset  # the phase has tokenized it

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> GlobalBatchSampler:
        return _sampler(self, self.train_dataset, self.args.process_index)

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """transformers' loader, whose sampler also gets the epoch if training resumes inside it.

        With several processes accelerate wraps the sampler twice to skip batches, but transformers
        sets the epoch only one level deep: the rest of the epoch would have the first one's order.
        """
        loader: DataLoader[Batch] = super().get_train_dataloader()
        wrapper = loader.batch_sampler
        if (sampler := getattr(wrapper, "batch_sampler", None)) is not None:
            wrapper.set_epoch = sampler.set_epoch  # type: ignore[union-attr]
        return loader

    def _prepare_input(self, data: Any) -> Any:
        """transformers' without its cast to DeepSpeed's dtype: bfloat16 would round the reference's
        log-prob of an answer, about -300, to a multiple of 2."""
        if isinstance(data, torch.Tensor):
            return data.to(self.args.device)
        return super()._prepare_input(data)

    def evaluate(self, *args: object, **kwargs: object) -> Metrics:
        """TRL's evaluation on the validation pairs, then the KL on answers of the policy."""
        metrics: Metrics = super().evaluate(*args, **kwargs)
        step, last = self.state.global_step, self.state.max_steps
        if self._settings.kl.prompts:
            due = self._kl_share.due(step, last, self.args.eval_steps)
            if broadcast_object_list([due])[0]:  # by the clock of rank 0
                with self._kl_share.measuring():
                    figures = self._divergence()
                self.log(figures)
                metrics |= figures
        return metrics

    def _divergence(self) -> Metrics:
        """The KL of the policy from the reference, measured on all ranks."""
        kl = self._settings.kl
        prompts = list(dict.fromkeys(tuple(ids) for ids in self.eval_dataset["prompt_ids"]))
        adapter = "ref" if self._job.reference is None else INITIAL
        models = policy_and_reference(
            self.model_wrapped, self.ref_model, self.accelerator, adapter=adapter
        )
        measured = sample_divergence(
            models,
            self.processing_class,
            share(prompts[: kl.prompts], self.args.process_index, self.args.world_size),
            max_new_tokens=kl.max_new_tokens,
            batch_size=KL_BATCH,
            seed=self.args.seed + self.state.global_step,
            device=self.accelerator.device,
        )
        return summarise(gather_object(measured))

    def compute_loss(self, model: CausalLM, inputs: Batch, *args: object, **kwargs: object) -> Any:
        inputs = dict(inputs)
        first = None
        if self.state.global_step == 0 and model.training and not self._started:
            self._started = True
            first = FirstBatch(self, model, inputs)
            inputs |= first.inputs
        rows = inputs.pop("rows")
        inputs.pop("witness")
        with nullcontext() if first is None else first.recorded(model):
            result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        metrics = self._add_per_token(inputs, "train" if model.training else "eval")
        if self.state.global_step == 0 and self._job.reference is None:
            # All margins are 0, so the share of margins above 0 is meaningless.
            metrics.pop("rewards/accuracies", None)
        # Gathered, so that every rank makes the same decision.
        local = torch.stack((loss.detach().float(), _tokens(inputs)))
        losses, tokens = self.accelerator.gather(local.reshape(1, 2)).T.tolist()
        if not all(map(math.isfinite, losses)):
            names = gather_object(rows if not math.isfinite(loss.item()) else [])
            check_finite("loss", losses, self.state.global_step, names)
        if model.training:
            self._trained_tokens += int(sum(tokens))
        metrics["num_tokens"] = [self._trained_tokens]  # TRL counts prompts twice
        if first is not None:
            rewards = [metrics[f"rewards/{which}"][-1] for which in COMPLETIONS]
            mean_loss = sum(losses) / len(losses)
            if self.aux_loss_enabled:  # of a router, which the reference has no part in
                mean_loss -= self.router_aux_loss_coef * metrics["aux_loss"][-1]
            first.check(mean_loss, rewards)
        return result

    def _add_per_token(self, inputs: Batch, mode: str) -> dict[str, list[float]]:
        """Add log-probs per token, which show displacement, to a mode's metrics, and return these.

        Both sums are taken over all batches since the last log: the average of the batches' ratios
        would give short answers the weight of long ones.
        """
        metrics: dict[str, list[float]] = self._metrics[mode]
        tokens = inputs["completion_mask"][:, 1:].sum(1).float().chunk(2)
        for name, lengths in zip(COMPLETIONS, tokens, strict=True):
            key, of_all = f"logps/{name}_per_token", self.accelerator.gather(lengths)
            # TRL removes metrics once they are logged; then the sums start again.
            logps, count = self._sums[mode, name] if key in metrics else (0.0, 0.0)
            logps += metrics[f"logps/{name}"][-1] * len(of_all)
            count += of_all.sum().item()
            self._sums[mode, name] = logps, count
            metrics[key] = [logps / max(count, 1.0)]
        return metrics


@contextmanager
def _without_second_model() -> Iterator[None]:
    """Keep TRL from loading a reference in full fine-tuning. This trainer has its log-probs or its
    weights, and shards them as it shards the policy."""
    create = dpo_trainer.create_model_from_path
    dpo_trainer.create_model_from_path = lambda *_, **__: None
    try:
        yield
    finally:
        dpo_trainer.create_model_from_path = create


def _tokens(inputs: Batch) -> Tensor:
    """The number of tokens of a batch, without padding and with each prompt once."""
    prompts = inputs["attention_mask"] - inputs["completion_mask"]
    tokens: Tensor = inputs["attention_mask"].sum() - prompts.chunk(2)[1].sum()
    return tokens.float()


def _sampler(trainer: Trainer, dataset: Dataset, rank: int) -> GlobalBatchSampler:
    return GlobalBatchSampler(
        dataset["tokens"],
        global_batch_size=trainer._settings.global_batch_size,
        micro_batch_size=trainer._settings.micro_batch_size,
        world_size=trainer.args.world_size,
        rank=rank,
        seed=trainer.args.seed,
    )
