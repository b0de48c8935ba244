"""The reference's log-probs of all rows, before the first step.

The policy is prepared and sharded then, and its weights are those of the reference: no process
needs memory for a second or for a whole model.
"""

from __future__ import annotations

from pathlib import Path

from accelerate.utils import gather_object, send_to_device
from datasets import Dataset
from transformers import TrainerCallback

from dpo_dist.config import is_quantized
from dpo_dist.errors import ModelError
from dpo_dist.system import ranks
from dpo_dist.system.console import counted, progress
from dpo_dist.training import Batch, Trainer
from dpo_dist.training.monitors import check_finite
from dpo_dist.training.reference import ReferenceCache, ReferenceLogProbs, reference_key
from dpo_dist.training.start_check import COMPLETIONS

# Without activations for a backward, the reference's batches can be larger than the micro-batch.
REFERENCE_BATCHES = 4


class ReferencePass(TrainerCallback):  # type: ignore[misc]  # transformers is not followed
    """Gives the collator of a `PreferenceTrainer` the log-probs that its losses need."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.run()

    def run(self) -> None:
        """Give the collator the reference's log-probs of all rows, after computing those that are
        missing. All ranks call this when the policy is prepared for training."""
        trainer, reference = self._trainer, self._trainer._job.reference
        found: dict[str, ReferenceLogProbs] = {}
        for name, dataset in (("train", trainer.train_dataset), ("eval", trainer.eval_dataset)):
            if dataset is None:
                continue
            if reference is None:
                values = self._start_logps(dataset, name)
            else:
                values = self._cached_logps(dataset, reference.identity)
            found.update(zip(dataset["row"], values, strict=True))
        trainer.data_collator.reference.update(found)

    def _cached_logps(self, dataset: Dataset, weights: Batch) -> list[ReferenceLogProbs]:
        """The log-probs of a reference that is not loaded, computed by a separate pass."""
        path = self._reference_file(weights)
        known = ReferenceCache(path).read()
        if missing := sum(row not in known for row in dataset["row"]):
            raise ModelError(
                f"{path} lacks the reference's log-probs of {counted(missing, 'row')}: remove "
                f"{self._trainer._job.out / 'reference'} and run the same command again"
            )
        return [known[row] for row in dataset["row"]]

    def _start_logps(self, dataset: Dataset, name: str) -> list[ReferenceLogProbs]:
        """The log-probs of the weights that training starts from, from the cache or computed.
        Raises `ModelError` if a resumed training needs them and no longer has those weights."""
        cache = ReferenceCache(self._reference_file(self._trainer._job.start))
        with cache.locked(lambda taken: bool(gather_object([taken])[0])):
            if ranks.is_main():
                cache.journal().close()  # removes an incomplete last line
            self._trainer.accelerator.wait_for_everyone()
            known, tokens = cache.read(), dataset["tokens"]
            missing = [i for i, row in enumerate(dataset["row"]) if row not in known]
            # Longest rows first: batches have rows of similar length, and memory peaks at once.
            missing.sort(key=lambda i: -tokens[i])
            if missing:
                self._check_at_start(cache.path)
                self._fill(cache, dataset.select(missing), name)
                known = cache.read()
            self._trainer.accelerator.wait_for_everyone()
        return [known[row] for row in dataset["row"]]

    def _reference_file(self, weights: Batch) -> Path:
        trainer = self._trainer
        precision = f"{trainer.model.dtype} {'bf16' if trainer.args.bf16 else 'fp32'}"
        if is_quantized(trainer._settings.method):
            precision += " nf4"
        key = reference_key(weights, precision, trainer._settings.ld_alpha)
        folder: Path = trainer._job.reference_folder
        return folder / f"{key}.jsonl"

    def _check_at_start(self, cache: Path) -> None:
        trainer = self._trainer
        # With LoRA, the reference is still in the model.
        if trainer.state.global_step > 0 and not hasattr(trainer.model, "peft_config"):
            raise ModelError(
                f"{cache} lacks log-probs of the reference, whose weights this resumed training "
                "has changed. Restore the file, or start over with --force."
            )

    def _fill(self, cache: ReferenceCache, rows: Dataset, name: str) -> None:
        """Compute the rows' log-probs on all ranks; rank 0 writes them to the cache."""
        trainer = self._trainer
        model = trainer.model_wrapped
        model.eval()
        batch_size = REFERENCE_BATCHES * trainer.args.per_device_train_batch_size
        world, rank = trainer.args.world_size, trainer.args.process_index
        journal = cache.journal() if ranks.is_main() else None
        with progress(f"reference: {name}", len(rows)) as advance:
            for start in range(0, len(rows), batch_size * world):
                own = range(start + rank, min(start + batch_size * world, len(rows)), world)
                # All ranks need the same number of forwards: one without a row repeats the first.
                examples = [rows[i] for i in own] or [rows[0]]
                batch = send_to_device(trainer.data_collator(examples), trainer.accelerator.device)
                names = batch.pop("rows")
                batch.pop("witness")
                chosen, rejected = trainer.compute_ref_log_probs(model, batch)
                logps = zip(examples, chosen.tolist(), rejected.tolist(), strict=True)
                records = [{"row": e["row"], "chosen": c, "rejected": r} for e, c, r in logps]
                gathered = {r["row"]: r for r in gather_object(records)}
                values = [r[which] for r in gathered.values() for which in COMPLETIONS]
                check_finite("a log-prob of the reference", values, 0, names)
                if journal is not None:
                    journal.append(ReferenceLogProbs(**record) for record in gathered.values())
                advance(min(batch_size * world, len(rows) - start))
        if journal is not None:
            journal.close()
        trainer.accelerator.wait_for_everyone()
