"""The model: a transformer built from the parts that the run file names, or a model of the transformers library.

- ``build.py`` builds the model of a run file. ``init.py`` draws the first weights of our transformer: it gives each
  parameter a role, such as "matrix", and has a branch for each kind of `model.init`.
- ``transformer.py`` has attention, feed-forward networks (table `FEEDFORWARDS`), activations (`ACTIVATIONS`), blocks,
  matrices that blocks share, and the `Transformer`. Its other parts have files of their own, each with the table of
  its kinds: ``norm.py`` (`NORMS`), ``position.py`` (`POSITIONS`, `SCALINGS`) and ``embedding_and_head.py``
  (`EMBEDDINGS`, `HEADS`). ``dropout.py`` has dropout by sample and the schedule of its rate.
- ``mask.py`` computes which keys each query sees; ``kernels.py`` chooses and calls an attention kernel.
- ``cache.py`` has the cache of keys and values, and `Abilities`, the ways in which a model can read texts.
- ``generate.py`` writes tokens with a cache; ``sampling.py`` chooses the next one from the logits.
- ``count.py`` counts parameters and FLOPs from the run file alone. ``typed.py`` wraps PyTorch functions without types.
- ``hf/`` has models of the transformers library, and the conversion of weights to and from its families.

The names below are imported on first use, because ``quintet.model.count`` needs no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quintet.model.build import Model, build_model
    from quintet.model.transformer import Transformer

_HOMES = {
    "Model": "quintet.model.build",
    "build_model": "quintet.model.build",
    "Transformer": "quintet.model.transformer",
}
__all__ = ["Model", "Transformer", "build_model"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
