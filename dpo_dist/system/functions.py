"""Loads a user's own function, named by `file.py:function` or `module:function` in a folder."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from dpo_dist.errors import ConfigError

FUNCTION_PATH = r"([\w-]+\.py|\w+(\.\w+)*):\w+"  # the last part of a path
LONGEST_MESSAGE = 300  # characters of an error of user code


def load_function(path: Path) -> Callable[..., object]:
    """Load the function of a path: a folder, then file.py:function or module:function.

    A file is searched in the folder and in the working directory, a module also in the installed
    packages, which come first. Both folders stay in `sys.path`, since the function may import
    modules when it is called. Raises `ConfigError` if the function cannot be imported.
    """
    folders = (path.parent.resolve(), Path.cwd())
    for folder in folders:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    module, _, name = path.name.partition(":")
    try:
        if module.endswith(".py"):
            found = _import_file(module, folders)
        else:
            found = importlib.import_module(module)
        function = getattr(found, name)
    except Exception as error:
        raise ConfigError(
            f"the function {path.name} cannot be imported from {path.parent} or the working "
            f"directory: {type(error).__name__}: {error}"
        ) from error
    if not inspect.isfunction(function):
        raise ConfigError(f"{path.name} is not a function")
    return function


def _import_file(name: str, folders: Sequence[Path]) -> ModuleType:
    """The module of a file in one of the folders, whatever modules have the same name."""
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"no such file: {name}")
    unique = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if unique in sys.modules:
        return sys.modules[unique]
    spec = importlib.util.spec_from_file_location(unique, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[unique] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


def shown_error(error: Exception) -> str:
    """An error of the user's code on one line. Unprintable characters, which a quoted answer may
    contain, are escaped."""
    message = repr(" ".join(str(error).split())[:LONGEST_MESSAGE])[1:-1]
    return f"{type(error).__name__}: {message}"


def function_file(path: Path) -> Path:
    """The file that defines the function."""
    return Path(inspect.getfile(load_function(path)))
