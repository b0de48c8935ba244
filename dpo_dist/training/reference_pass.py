"""The log-probs of a reference that training does not start from, computed before it.

Later rounds of iterative DPO may be measured by the initial SFT model. Processes of their own load
it the way the first round did, as the policy and as its reference: they fill the cache, and then
take one step, which is thrown away, so that what they computed passes the gate of the first loss.
"""

from __future__ import annotations

from dpo_dist.config import KlMonitor
from dpo_dist.errors import Preempted
from dpo_dist.training.job import OUTCOME, STOP, TrainingJob, num_processes
from dpo_dist.training.nodes import Leader
from dpo_dist.training.supervise import launch


def compute_reference(job: TrainingJob, leader: Leader | None = None) -> None:
    """Return when the log-probs of the job's `reference` are in the cache; at once where an
    earlier start of the same job has seen to it. Raises what `launch` raises."""
    own = reference_job(job)
    if (own.out / OUTCOME).exists():
        return
    launch(own, leader)
    if (own.out / STOP).exists():
        raise Preempted(
            "training was stopped before its first step; its reference log-probs are computed"
        )


def reference_job(job: TrainingJob) -> TrainingJob:
    """The job of the pass: from the reference's weights, a global batch of one micro-batch."""
    assert job.reference is not None
    settings = job.settings
    batch = settings.micro_batch_size * num_processes(settings.accelerate_config)
    smaller = {"global_batch_size": batch, "kl": KlMonitor(prompts=0), "select": "last"}
    return job.model_copy(
        update={
            "kind": "reference",
            "settings": settings.model_copy(update=smaller),
            "model": job.reference.model,
            "adapter": job.reference.adapter,
            "start": job.reference.identity,
            "reference": None,
            "out": job.out / "reference",
            "wandb": None,
        }
    )
