"""The files of a checkpoint in Hugging Face's form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quintet.errors import UserError

_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"


def find_checkpoint(name_or_path: str, revision: str | None = None) -> Path:
    """The folder ``name_or_path``, or that of the repository of this name on the hub, downloaded if need be.

    Raises UserError when it is neither, or when the hub cannot be reached.
    """
    folder = Path(name_or_path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise UserError(f"{name_or_path}: has no config.json, so that it is no checkpoint of Hugging Face's form")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise UserError(
            f"{name_or_path}: is no folder, and names on the hub need the hf extra: pip install 'quintet[hf]'"
        ) from None
    try:
        found = snapshot_download(
            name_or_path, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]
        )
        if not list(Path(found).glob("*.safetensors")):
            snapshot_download(name_or_path, revision=revision, allow_patterns=["*.bin"])
    except HFValidationError:
        raise UserError(f"{name_or_path}: is no folder and can be no name on the hub") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name_or_path}: is no folder here and cannot be had from the hub ({reason})") from None
    return Path(found)


def read_config(folder: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """The values of the `config.json` in ``folder``, completed and brought to today's names by `transformers`.

    Raises UserError when it cannot be read, or without `transformers`.
    """
    try:
        from transformers import AutoConfig
    except ImportError:
        raise UserError(f"{folder}: reading it needs the hf extra: pip install 'quintet[hf]'") from None
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).to_dict()
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{folder}/config.json: transformers cannot read it ({reason})") from None


class Tensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, of which each is read when it is asked for.

    In one file or several, as safetensors or, if there are none, as PyTorch's pickles, of which nothing but tensors is
    unpickled. Raises UserError when there is neither, or when a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        for name in (_SAFE, _PICKLED):
            files = _files(folder, name)
            if files:
                break
        else:
            raise UserError(f"{folder}: holds neither {_SAFE} nor {_PICKLED}")
        self._where: dict[str, Any] = {}
        for file in files:
            if not file.is_file():
                raise UserError(f"{file}: is missing; copy the whole checkpoint")
            try:
                source = safe_open(file, "pt") if name == _SAFE else _unpickled(file)
            except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
                raise UserError(f"{file}: is damaged ({str(error).splitlines()[0]}); copy it again") from None
            self._where |= dict.fromkeys(source.keys(), source)

    def __getitem__(self, name: str) -> Tensor:
        source = self._where[name]
        return source[name] if isinstance(source, dict) else source.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _files(folder: Path, name: str) -> list[Path]:
    """The file ``name``, or those that its index names."""
    index = folder / f"{name}.index.json"
    if index.is_file():
        try:
            return [folder / file for file in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{index}: is damaged ({error}); copy it again") from None
    return [folder / name] if (folder / name).is_file() else []


def _unpickled(file: Path) -> dict[str, Tensor]:
    return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
