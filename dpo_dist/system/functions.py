"""Loads a user's own function, named by `module:function` in a folder."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from dpo_dist.errors import ConfigError

FUNCTION_PATH = r"\w+(\.\w+)*:\w+"  # the last part of a path
LONGEST_MESSAGE = 300  # characters of an error of user code


def load_function(path: Path) -> Callable[..., object]:
    """Load the function of a path: a folder, then module:function.

    The module is searched in the installed packages, in the folder and in the working directory.
    Both folders stay in `sys.path`, since the function may import modules when it is called.
    Raises `ConfigError` if the function cannot be imported.
    """
    for folder in (path.parent.resolve(), Path.cwd()):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    module, _, name = path.name.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ConfigError(
            f"the function {path.name} cannot be imported from {path.parent} or the working "
            f"directory: {type(error).__name__}: {error}"
        ) from error
    if not inspect.isfunction(function):
        raise ConfigError(f"{path.name} is not a function")
    return function


def shown_error(error: Exception) -> str:
    """An error of the user's code on one line. Unprintable characters, which a quoted answer may
    contain, are escaped."""
    message = repr(" ".join(str(error).split())[:LONGEST_MESSAGE])[1:-1]
    return f"{type(error).__name__}: {message}"


def function_file(path: Path) -> Path:
    """The file that defines the function."""
    return Path(inspect.getfile(load_function(path)))
