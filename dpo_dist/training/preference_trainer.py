"""TRL's `DPOTrainer` on our rows: packed, balanced, with its reference from the cache.

Losses, metrics, the reference adapter and saving are TRL's. What is ours enters at five of its
seams: the collator, the sampler, the forward (`layout.install`), the reference's log-probs and
the gates around each loss.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import DPOTrainer
from trl.models import prepare_deepspeed
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_dist.config import Train
from dpo_dist.errors import ModelError
from dpo_dist.system import ranks
from dpo_dist.system.console import counted, progress
from dpo_dist.training import attention, lora_linear
from dpo_dist.training.divergence import (
    policy_and_reference,
    sample_divergence,
    share,
    summarise,
)
from dpo_dist.training.job import TrainingJob
from dpo_dist.training.layout import install
from dpo_dist.training.models import INITIAL
from dpo_dist.training.monitors import Start, check_finite, check_start
from dpo_dist.training.packing import plan_packing
from dpo_dist.training.reference import ReferenceCache, ReferenceLogProbs, reference_key
from dpo_dist.training.sampler import GlobalBatchSampler

# Forward passes keep no activations: the reference takes larger batches than training does.
REFERENCE_BATCHES = 4
KL_BATCH = 16  # sampled answers at a time


@dataclass
class PairCollator(DataCollatorForPreference):  # type: ignore[misc]  # TRL is not typed
    """TRL's padded batch with the rows' names under `rows`, and with `pack`, the plan that packs
    it, where `packed` is set."""

    packed: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["rows"] = [example["id"] for example in examples]
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
    """Trains on rows of `id, row, prompt_ids, chosen_ids, rejected_ids`."""

    def __init__(self, *args: Any, job: TrainingJob, packed: bool, **kwargs: Any) -> None:
        assert isinstance(job.settings, Train)
        self._job = job
        self._settings = job.settings
        self._packed = packed
        self._started = False
        self._start = Start()
        # Log-probs and tokens since the last log, by mode and completion.
        self._sums: dict[tuple[str, str], tuple[float, float]] = {}
        super().__init__(*args, **kwargs)
        self._wrap_forwards()

    def _wrap_forwards(self) -> None:
        """Those of policy and reference; TRL has put its fused head on both. Before the reference
        is computed: it has to round as the policy will."""
        lora_linear.install(self.model)
        for wrapped in (self.model, self.ref_model):
            if wrapped is not None:
                model = self.accelerator.unwrap_model(wrapped)
                if self._packed and model.config._attn_implementation != attention.NAME:
                    model.set_attn_implementation(attention.NAME)
                if install(model) and wrapped is self.ref_model:
                    # It is prepared already: accelerate's autocast lies under our forward.
                    model.forward = self._under_autocast(model.forward)

    def _under_autocast(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.accelerator.autocast():
                return forward(*args, **kwargs)

        return call

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # the phase tokenized, and counted what it dropped

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> GlobalBatchSampler:
        lengths = self.train_dataset["tokens"]
        return _sampler(lengths, self._settings, self.args, self.args.process_index)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Transformers' own; its sampler is told of its epoch also where one is resumed inside it.

        With several processes accelerate wraps the sampler, and once more to skip what was done;
        transformers reaches one level deep, and the rest of the epoch would be the first one's.
        """
        loader: DataLoader[Any] = super().get_train_dataloader()
        wrapper = loader.batch_sampler
        if (sampler := getattr(wrapper, "batch_sampler", None)) is not None:
            wrapper.set_epoch = sampler.set_epoch  # type: ignore[union-attr]
        return loader

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """TRL's hook, called while it is built: the reference's log-probs as two columns."""
        self._wrap_forwards()
        reference = self._job.reference
        if reference is None:
            values = self._computed(dataset, name, batch_size)
        else:
            values = self._known(dataset, reference.identity)
            if name == "train":
                self._start = self._start_of(dataset, values, batch_size)
        dataset = dataset.add_column("ref_chosen_logps", [v.chosen for v in values])
        return dataset.add_column("ref_rejected_logps", [v.rejected for v in values])

    def _known(self, dataset: Dataset, weights: dict[str, Any]) -> list[ReferenceLogProbs]:
        """The log-probs of a reference that is not here: what its own pass has computed."""
        path = self._reference_file(weights)
        known = ReferenceCache(path).read()
        if missing := sum(row not in known for row in dataset["row"]):
            raise ModelError(
                f"{path} lacks {counted(missing, 'row')} of the reference's log-probs: remove "
                f"{self._job.out / 'reference'} and run the same command again"
            )
        return [known[row] for row in dataset["row"]]

    def _start_of(
        self, dataset: Dataset, reference: Sequence[ReferenceLogProbs], batch_size: int
    ) -> Start:
        """What the first micro-batch, of all ranks, has to give: its log-ratios are those of the
        weights that training starts from, computed here, and of the reference."""
        first = [
            row
            for rank in range(self.args.world_size)
            for row in next(iter(_sampler(dataset["tokens"], self._settings, self.args, rank)))
        ]
        start = self._computed(dataset.select(first), "the first batch", batch_size)
        pairs = [(s, reference[row]) for s, row in zip(start, first, strict=True)]
        return Start(
            chosen=tuple(s.chosen - r.chosen for s, r in pairs),
            rejected=tuple(s.rejected - r.rejected for s, r in pairs),
        )

    def _computed(self, dataset: Dataset, name: str, batch_size: int) -> list[ReferenceLogProbs]:
        """The log-probs of the weights that training starts from, from the cache or computed."""
        cache = ReferenceCache(self._reference_file(self._job.start))
        with cache.locked(lambda taken: bool(gather_object([taken])[0])):
            if ranks.is_main():
                cache.journal().close()  # cuts off a torn last line
            self.accelerator.wait_for_everyone()
            known, tokens = cache.read(), dataset["tokens"]
            missing = [i for i, row in enumerate(dataset["row"]) if row not in known]
            # Long rows first: a batch holds rows of a length, and memory is tried out at once.
            missing.sort(key=lambda i: -tokens[i])
            if missing:
                self._fill(cache, dataset.select(missing), name, REFERENCE_BATCHES * batch_size)
                known = cache.read()
            self.accelerator.wait_for_everyone()
        return [known[row] for row in dataset["row"]]

    def _reference_file(self, weights: dict[str, Any]) -> Path:
        precision = f"{self.model.dtype} {'bf16' if self.args.bf16 else 'fp32'}"
        key = reference_key(weights, precision, self._settings.ld_alpha)
        assert self._job.reference_folder is not None
        return self._job.reference_folder / f"{key}.jsonl"

    def _fill(self, cache: ReferenceCache, rows: Dataset, name: str, batch_size: int) -> None:
        """Compute the rows' log-probs on all ranks; rank 0 writes them down as they come."""
        model, engine = self.model, None
        if self.is_deepspeed_enabled:
            # The policy is not prepared yet; under ZeRO-3 its weights are shards.
            model = engine = prepare_deepspeed(self.model, self.accelerator)
        else:
            model.to(self.accelerator.device)
        world, rank = self.args.world_size, self.args.process_index
        journal = cache.journal() if ranks.is_main() else None
        with progress(f"reference: {name}", len(rows)) as advance:
            for start in range(0, len(rows), batch_size * world):
                own = range(start + rank, min(start + batch_size * world, len(rows)), world)
                # Every rank runs equally many forwards: a rank without a row repeats the first.
                examples = [rows[i] for i in own] or [rows[0]]
                batch = self._prepare_inputs(self._to_device(self.data_collator(examples)))
                batch.pop("rows")
                chosen, rejected = self.compute_ref_log_probs(model, batch)
                records = [
                    {"row": example["row"], "chosen": c, "rejected": r}
                    for example, c, r in zip(
                        examples, chosen.tolist(), rejected.tolist(), strict=True
                    )
                ]
                gathered = {r["row"]: r for r in gather_object(records)}
                values = [r[which] for r in gathered.values() for which in _COMPLETIONS]
                names = [example["id"] for example in examples]
                check_finite("a log-prob of the reference", values, 0, names)
                if journal is not None:
                    journal.append(ReferenceLogProbs(**record) for record in gathered.values())
                advance(min(batch_size * world, len(rows) - start))
        if journal is not None:
            journal.close()
        if engine is not None:
            engine.destroy()  # its hooks would count every module twice in training
        self.accelerator.wait_for_everyone()

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = self.accelerator.device
        return {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's evaluation on the validation pairs, then the KL on answers of the policy."""
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        kl = self._settings.kl
        if kl.prompts:
            prompts = list(dict.fromkeys(tuple(ids) for ids in self.eval_dataset["prompt_ids"]))
            measured = sample_divergence(
                *policy_and_reference(
                    *(self.model, self.ref_model, self.accelerator),
                    adapter="ref" if self._job.reference is None else INITIAL,
                ),
                self.processing_class,
                share(prompts[: kl.prompts], self.args.process_index, self.args.world_size),
                max_new_tokens=kl.max_new_tokens,
                batch_size=KL_BATCH,
                seed=self.args.seed + self.state.global_step,
                device=self.accelerator.device,
            )
            figures = summarise(gather_object(measured))
            self.log(figures)
            metrics |= figures
        return metrics

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = dict(inputs)
        rows = inputs.pop("rows")
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        mode = "train" if model.training else "eval"
        self._add_metrics(mode, inputs)
        self._drop_accuracy(mode)
        # Gathered, so that every rank comes to the same decision.
        losses = self.accelerator.gather(loss.detach().float().reshape(1)).tolist()
        if not all(map(math.isfinite, losses)):
            names = gather_object(rows if not math.isfinite(loss.item()) else [])
            check_finite("loss", losses, self.state.global_step, names)
        if self.state.global_step == 0 and model.training and not self._started:
            self._started = True
            rewards = [self._metrics[mode][f"rewards/{which}"][-1] for which in _COMPLETIONS]
            precision = "bfloat16" if self.args.bf16 else "float32"
            loss_of_all = sum(losses) / len(losses)
            check_start(loss_of_all, rewards, self._settings, precision, self._start)
        return result

    def _add_metrics(self, mode: str, inputs: dict[str, Any]) -> None:
        """Log-probs per token, which displacement shows in: sums move with the lengths.

        The ratio of both sums over all that is logged together; TRL averages batches, and a ratio
        of each would give short answers the weight of long ones.
        """
        metrics = self._metrics[mode]
        tokens = inputs["completion_mask"][:, 1:].sum(1).float().chunk(2)
        for name, lengths in zip(_COMPLETIONS, tokens, strict=True):
            key, of_all = f"logps/{name}_per_token", self.accelerator.gather(lengths)
            # TRL drops its metrics once they are logged: then the sums begin again.
            logps, count = self._sums[mode, name] if key in metrics else (0.0, 0.0)
            logps += metrics[f"logps/{name}"][-1] * len(of_all)
            count += of_all.sum().item()
            self._sums[mode, name] = logps, count
            metrics[key] = [logps / max(count, 1.0)]

    def _drop_accuracy(self, mode: str) -> None:
        """Before the first step all margins are 0 where training starts from the reference: the
        accuracy, which counts those above, says nothing."""
        if self.state.global_step == 0 and self._job.reference is None:
            self._metrics[mode].pop("rewards/accuracies", None)


_COMPLETIONS = ("chosen", "rejected")


def _sampler(lengths: Sequence[int], settings: Train, args: Any, rank: int) -> GlobalBatchSampler:
    return GlobalBatchSampler(
        lengths=lengths,
        global_batch_size=settings.global_batch_size,
        micro_batch_size=settings.micro_batch_size,
        world_size=args.world_size,
        rank=rank,
        seed=args.seed,
    )


def evaluation_batch_size(rows: int, micro_batch_size: int, world_size: int) -> int:
    """The largest batch, at most the micro-batch, that divides the validation rows evenly: TRL
    averages batches, so that an incomplete one would weigh its pairs more."""
    fitting = (size for size in range(micro_batch_size, 1, -1) if rows % (size * world_size) == 0)
    return next(fitting, 1)
