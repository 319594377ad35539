"""Quintet trains language models, of text and of piano music, from one typed YAML file.

Everything that the command line does is available to scripts and notebooks:

    import quintet

    config = quintet.load_config("examples/quickstart.yaml", ["train.steps=200"])
    quintet.check(config)         # every mistake at once, before anything runs
    quintet.plan(config)          # parameters, FLOPs, memory, time
    run = quintet.train(config)   # or continue it; a notebook shows the curve of the run
    run.metrics                   # a DataFrame if pandas is installed

    model = quintet.load(run)     # or a run folder, a Hugging Face checkpoint, or its name on the hub
    model.generate("def ", seed=1)
    model.loss(["import os"])

A mistake that you can mend raises `quintet.UserError`. The guide is docs/guide/python.md.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintet.api import check, load, load_config, plan, prepare, train, try_run
    from quintet.errors import UserError
    from quintet.evaluate.language_model import LanguageModel
    from quintet.results import Run
    from quintet.system import __version__

__all__ = [
    "LanguageModel",
    "Run",
    "UserError",
    "__version__",
    "check",
    "load",
    "load_config",
    "plan",
    "prepare",
    "train",
    "try_run",
]

_MODULES = {
    "LanguageModel": "quintet.evaluate.language_model",
    "Run": "quintet.results",
    "UserError": "quintet.errors",
    "__version__": "quintet.system",
}


def __getattr__(name: str) -> Any:
    # Names are imported when they are first used, so that `import quintet` costs nothing.
    if name not in __all__:
        raise AttributeError(f"module 'quintet' has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "quintet.api")), name)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """The package `quintet`, in which `train` and `plan` are both functions and packages."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            # Python binds an imported package to its name here. The function keeps the name and gets the contents of
            # the package as attributes, so that `quintet.train(config)` and `quintet.train.loop` both work.
            function = getattr(import_module("quintet.api"), name)
            function.__dict__ = vars(value)
            value = function
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
