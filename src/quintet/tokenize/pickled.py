"""Pickled tokenizers of the transformers library, read without running what else a pickle may hold."""

from __future__ import annotations

import importlib
import io
import pickle
from pathlib import Path
from typing import Any

from quintet.errors import UserError
from quintet.libraries import require
from quintet.tokenize.folder import read_bytes

_ALLOWED = {
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("builtins", "dict"),
    ("copyreg", "_reconstructor"),
    ("builtins", "object"),
    ("_codecs", "encode"),
    ("tokenizers", "Tokenizer"),
    ("tokenizers", "AddedToken"),
    ("tokenizers.models", "Model"),
    ("transformers.tokenization_utils_base", "AddedToken"),
}


def load_pickled(file: Path) -> Any:
    """The transformers tokenizer that was pickled into ``file``.

    Classes of tokenizers are found, and what they are made of; everything else is refused before it runs. Raises
    UserError for a file that holds something else, or that this version of the library cannot read.
    """
    try:
        found = _Unpickler(io.BytesIO(read_bytes(file))).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: holds no tokenizer that can be read ({error}); load it where it was made, and save it with "
            "save_pretrained"
        ) from None
    if not hasattr(found, "backend_tokenizer"):
        raise UserError(f"{file}: holds a {type(found).__name__}, which is no fast tokenizer")
    return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) in _ALLOWED or _is_tokenizer(module_name, global_name):
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is part of no tokenizer")


def _is_tokenizer(module_name: str, global_name: str) -> bool:
    """Whether this is a class of a tokenizer of the library, and no function of it."""
    if not module_name.startswith("transformers.") or "." in global_name or "tokeniz" not in module_name:
        return False
    base = require("transformers", "hf", "a pickled tokenizer").PreTrainedTokenizerBase
    found = getattr(importlib.import_module(module_name), global_name, None)
    return isinstance(found, type) and issubclass(found, base)
