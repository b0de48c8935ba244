"""The user's own metrics: a function of a module."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_dist.config import FunctionMetric
from dpo_dist.errors import ConfigError
from dpo_dist.metrics.metric import Answer, NotScored
from dpo_dist.storage.records import Prompt


def user_function(config: FunctionMetric) -> Callable[[Prompt, Answer], float]:
    """The function that `path` names, as a metric. Raises `ConfigError` where it is not there."""
    function = _load(config)

    def score(prompt: Prompt, answer: Answer) -> float:
        value = function(prompt, answer.text)
        if value is None:
            raise NotScored("no_value", f"{config.path.name} returned None")
        return float(value)

    return score


def source_file(config: FunctionMetric) -> Path:
    """The file that the function stands in."""
    return Path(inspect.getfile(_load(config)))


def _load(config: FunctionMetric) -> Callable[[Prompt, str], Any]:
    """Import the module. The run file's folder comes before the working directory, and both after
    what is installed, which a user's file must not replace. They stay on the path, since the
    function may import its neighbours when it is called.
    """
    for folder in (config.path.parent.resolve(), Path.cwd()):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    module, _, name = config.path.name.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(
            f"the metric {config.path.name} cannot be imported from {config.path.parent} or the "
            f"working directory: {type(error).__name__}: {error}"
        ) from error
    if not inspect.isfunction(function):
        raise ConfigError(f"the metric {config.path.name} is not a function")
    checked: Callable[[Prompt, str], Any] = function
    return checked
