"""What serving processes refuse at run time: to unpickle, and to run code that they were given.

`install()` adds an audit hook, which the interpreter calls before it does such things, and which cannot be taken away.
Our own code never asks for them (tests/test_security.py reads it); this is for what our code calls. Libraries build
their classes, kernels and templates with `exec`, and read their caches with `pickle`: those are known by name.
"""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any

from octavo.core.errors import EngineError

# Who may unpickle: its own caches and the messages of its own processes. Never what opens checkpoints.
_MAY_UNPICKLE = frozenset(("torch", "triton", "multiprocessing", "concurrent"))
_CHECKPOINTS = ("torch.serialization", "torch._weights_only_unpickler", "torch.package", "torch.jit")
_MAY_UNMARSHAL = frozenset(("importlib", "zipimport", "_frozen_importlib_external"))
_OURS = frozenset(("octavo", "__main__"))
_FROM_MODELS = "transformers_modules"  # where transformers puts the Python files of a model before it imports them
_installed = False


def install() -> None:
    """From here on, and for good. Once is enough."""
    global _installed
    if not _installed:
        _installed = True
        sys.addaudithook(_watch)


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event not in _EVENTS:
        return
    name = sys._getframe(1).f_globals.get("__name__") or ""
    root = name.partition(".")[0]
    if event == "pickle.find_class":
        allowed = root in _MAY_UNPICKLE and not name.startswith(_CHECKPOINTS)
    elif event == "exec":
        code = args[0]
        allowed = root not in _OURS and not (isinstance(code, CodeType) and _FROM_MODELS in code.co_filename)
    elif event == "compile":
        allowed = root not in _OURS
    else:
        allowed = root in _MAY_UNMARSHAL
    if not allowed:
        raise EngineError(f"{event} is refused in a serving process; {name or 'something'} asked for it")


_EVENTS = frozenset(("pickle.find_class", "marshal.load", "marshal.loads", "exec", "compile"))
