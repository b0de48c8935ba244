"""`select: best`: the saved model gets the weights of the best step, from its checkpoint."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from transformers import TrainerState

from dpo_dist.system.console import warn
from dpo_dist.training.checkpoints import damage

# Where accelerate writes FSDP's weights, as a checkpoint of torch.distributed.checkpoint.
FSDP_WEIGHTS = "pytorch_model_fsdp_0"


def put_best(model: Path, state: TrainerState) -> int:
    """Replace the last step's weights in `model` by the best step's; return that step. They are
    copied, because ZeRO cannot load shards that another number of processes wrote."""
    step, checkpoint = state.best_global_step, state.best_model_checkpoint
    if step is None or step == state.global_step:
        return int(state.global_step)
    problem = (
        "it was deleted"
        if checkpoint is None
        else damage(Path(checkpoint), "*.safetensors*", f"{FSDP_WEIGHTS}/*")
    )
    if problem:
        warn(f"the best step, {step}, cannot be selected: {problem}. Using the last one instead.")
        return int(state.global_step)
    shards = Path(str(checkpoint)) / FSDP_WEIGHTS
    if shards.is_dir():
        for file in model.glob("*.safetensors"):
            _refill(file, shards)
        return int(step)
    for file in model.glob("*.safetensors*"):
        file.unlink()
    for file in Path(str(checkpoint)).glob("*.safetensors*"):
        shutil.copy2(file, model / file.name)
    return int(step)


def _refill(file: Path, shards: Path) -> None:
    """Replace the tensors of a safetensors file by those of the same names in FSDP's shards. Only
    the tensors of this file are in memory."""
    reader = FileSystemReader(shards)
    # PEFT leaves the adapter's name out in its own files.
    known = {
        key.removeprefix("model.").replace(".default.", "."): key
        for key in reader.read_metadata().state_dict_metadata
    }
    with safe_open(file, "pt") as content:
        metadata = content.metadata()
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    found = {known[name]: torch.empty_like(tensor) for name, tensor in tensors.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that only one process loads
        load(found, storage_reader=reader, no_dist=True)
    save_file({name: found[known[name]] for name in tensors}, file, metadata)
