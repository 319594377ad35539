"""The files of a checkpoint in Hugging Face's format."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from quintet.config.keypath import is_mapping
from quintet.config.names import local_path
from quintet.errors import UserError, one_line
from quintet.files import files_digest, from_json
from quintet.libraries import require
from quintet.model.hf.table import FAMILIES

_INDEX, _ADAPTER = ".index.json", "adapter_config.json"
# In the order in which transformers looks for them.
_WEIGHTS = ("model.safetensors", f"model.safetensors{_INDEX}", "pytorch_model.bin", f"pytorch_model.bin{_INDEX}")
_OTHER_WEIGHTS = re.compile(r"(model|pytorch_model|consolidated).*\.(safetensors|bin|pth?)|.*\.(gguf|ckpt)")
POSITIONS = (  # keys of a configuration for the longest text, in tokens; the first that is there counts
    "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length", "context_length",
    "model_max_length", "max_target_positions",
)  # fmt: skip
_POINTER = b"version https://git-lfs"
_MOST_LABELS = 1_000_000


def find_checkpoint(name_or_path: str, revision: str | None = None) -> Path:
    """Return the folder ``name_or_path``, or the hub's repository of this name, downloaded if it is not here.

    Raises UserError if it is neither, holds only an adapter, or the hub cannot be reached.
    """
    folder = local_path(name_or_path)
    refuse_adapter(folder)
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise UserError(f"{name_or_path}: has no config.json, so that it is no checkpoint of Hugging Face's form")
    hub = require("huggingface_hub", "hf", f"{name_or_path}: is no folder, and a name on the hub")
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        downloaded = hub.snapshot_download(
            name_or_path, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]
        )
        if not list(Path(downloaded).glob("*.safetensors")):
            hub.snapshot_download(name_or_path, revision=revision, allow_patterns=["*.bin"])
    except HFValidationError:
        raise UserError(f"{name_or_path}: is no folder and can be no name on the hub") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name_or_path}: is no folder here and cannot be had from the hub ({reason})") from None
    refuse_adapter(Path(downloaded))
    return Path(downloaded)


def refuse_adapter(folder: Path) -> None:
    """Raise UserError if ``folder`` holds adapters of peft, which are no model by themselves."""
    file = folder / _ADAPTER
    if not file.is_file():
        return
    values = _read_json(file)
    kind, base = values.get("peft_type", "adapter"), values.get("base_model_name_or_path") or "a model it does not name"
    beside = "beside a model " if (folder / "config.json").is_file() else ""
    raise UserError(
        f"{folder}: holds a {kind} adapter {beside}({_ADAPTER}), made for {base}; give that model, or the two merged: "
        f"peft.AutoPeftModelForCausalLM.from_pretrained({str(folder)!r}).merge_and_unload().save_pretrained('merged')"
    )


def read_config(folder: Path, say: Callable[[str], object] = lambda line: None) -> dict[str, Any]:
    """Return the values of the `config.json` in ``folder``, completed by `transformers`, which also renames old keys.

    ``tie_word_embeddings`` follows the stored tensors: a head that differs from the embedding is a matrix of its own,
    whatever the file says, and ``say`` receives a line about it. Raises UserError if the file cannot be read, or
    without `transformers`.
    """
    library = require("transformers", "hf", f"{folder}: reading it")
    check_config(folder)
    try:
        values = library.AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except Exception as error:  # the library raises many kinds, and each means that the file is wrong
        raise UserError(f"{folder}/config.json: transformers cannot read it ({one_line(error, lines=1)})") from None
    if values.get("tie_word_embeddings") and head_is_its_own(values.get("model_type", ""), folder):
        values["tie_word_embeddings"] = False
        say(
            f"{folder}: config.json says tie_word_embeddings: true, but the head differs from the embedding; both are "
            "kept, as two matrices"
        )
    return values


def check_config(folder: Path) -> None:
    """Raise UserError if the `config.json` in ``folder`` cannot be read, or has so many labels that `transformers`
    would not finish to list them."""
    file = folder / "config.json"
    labels = _read_json(file).get("num_labels")
    if isinstance(labels, int) and labels > _MOST_LABELS:
        raise UserError(f"{file}: num_labels: {labels} are more than {_MOST_LABELS}; correct it")


@contextmanager
def building(where: str) -> Generator[None]:
    """Inside the context, raise UserError, which starts with ``where``, if no model of the sizes in `config.json`
    fits."""
    try:
        yield
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:  # TypeError: of numbers beyond 64 bits
        raise UserError(
            f"{where}/config.json: no model of its sizes can be made here ({one_line(error, lines=1)})"
        ) from None


def positions_of(values: Mapping[str, Any]) -> int | None:
    """Return the length of the longest text, in tokens, by the ``values`` of a `config.json`; None if it has no limit,
    as for a state space model (Mamba) or biases by distance (Bloom).

    >>> positions_of({"n_positions": 1024})
    1024
    """
    text = values.get("text_config") or values
    limits = (text.get(name) for name in POSITIONS)
    return next((number for number in limits if isinstance(number, int) and number > 0), None)


def head_is_its_own(model_type: str, folder: Path) -> bool:
    """Return True if the weights in ``folder`` are of one of the families and their head differs from the embedding.

    Raises UserError if they cannot be read.
    """
    family = next((family for family in FAMILIES if family.model_type == model_type), None)
    if family is None or weight_files(folder) is None:
        return False
    embedding, head = (f"{family.names[ours]}.weight" for ours in ("embedding", "head"))
    return bool(differing(Tensors(folder), {head: embedding}, family.base))


def check_finite(name: str, value: Tensor, where: str) -> None:
    """Raise UserError, which starts with ``where``, if ``value``, of any shape and dtype, is not finite throughout."""
    if not torch.isfinite(value.detach().sum(dtype=torch.float32 if value.dtype.is_floating_point else None)):
        raise UserError(f"{where}: {name} holds numbers that are not finite; the checkpoint is damaged")


def check_floats(names: Iterable[str], tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError, which starts with ``where``, if one of the ``names`` in ``tensors``, of any shape and dtype,
    holds no floating-point numbers."""
    for name in names:
        kind = tensors.dtype(name) if isinstance(tensors, Tensors) else tensors[name].dtype
        if not kind.is_floating_point:
            dtype = str(kind).removeprefix("torch.")
            raise UserError(f"{where}: {name} holds numbers of type {dtype} and no floats; take another checkpoint")


def differing(tensors: Mapping[str, Tensor], pairs: Mapping[str, str], base: str) -> list[str]:
    """Return the keys of ``pairs`` whose tensor in ``tensors``, of any shape and dtype, differs from that of their
    value, if both exist; names in ``tensors`` may lack the prefix ``base``, which they have in a model with a head."""
    stored = {name: name if name in tensors else name.removeprefix(base) for pair in pairs.items() for name in pair}
    return [
        one
        for one, other in pairs.items()
        if stored[one] in tensors
        and stored[other] in tensors
        and not torch.equal(tensors[stored[one]], tensors[stored[other]])
    ]


@dataclass(frozen=True)
class WeightFiles:
    """The ``files`` of a checkpoint's weights that `transformers` chooses, and the names of the ``unread`` ones in its
    folder."""

    files: list[Path]
    unread: list[str]

    def notes(self, where: str) -> list[str]:
        """Return a line, which starts with ``where``, if some files of weights are not read."""
        if not self.unread:
            return []
        more = f" and {len(self.unread) - 1} more" if len(self.unread) > 1 else ""
        return [
            f"{where}: {self.files[0].name}{' …' if len(self.files) > 1 else ''} is read, as transformers does; "
            f"{self.unread[0]}{more} beside it {'are' if more else 'is'} not"
        ]


def weight_files(folder: Path) -> WeightFiles | None:
    """Return the weights in ``folder``; None if there are none with a name that `transformers` looks for.

    Raises UserError for an index that is damaged or names a file elsewhere, and for a missing file.
    """
    chosen = _read_json(folder / "config.json").get("transformers_weights")
    if chosen is not None and not (isinstance(chosen, str) and (folder / chosen).parent == folder):
        raise UserError(f"{folder}/config.json: transformers_weights: {chosen} is no file beside it; correct it")
    name = next((name for name in (_WEIGHTS if chosen is None else (chosen,)) if (folder / name).is_file()), None)
    if name is None:
        return None
    files = _indexed(folder / name) if name.endswith(_INDEX) else [folder / name]
    read = {file.name for file in files}
    return WeightFiles(files, [other for other in _weights_in(folder) if other not in read])


def checkpoint_digest(folder: Path) -> str:
    """Return the identity of the checkpoint in ``folder``: the commit of a folder in the hub's cache, otherwise the
    digest of its `config.json` and its weights (see ``files_digest``). Raises UserError as ``weight_files`` does."""
    if folder.parent.name == "snapshots":
        return f"commit {folder.name}"
    weights = weight_files(folder)
    return f"sha256 {files_digest([folder / 'config.json', *(weights.files if weights else ())])}"


def _weights_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if _OTHER_WEIGHTS.fullmatch(file.name) and file.is_file())


class Tensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, each in its stored shape and dtype and read on access.

    ``files`` are one file or several, safetensors or PyTorch's pickles, from which only tensors are unpickled. Raises
    UserError if there are none, or a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        weights = weight_files(folder)
        if weights is None:
            others = _weights_in(folder)
            hint = f"; {others[0]}, which is there, has no name that transformers looks for" if others else ""
            raise UserError(f"{folder}: holds neither {_WEIGHTS[0]} nor {_WEIGHTS[2]}{hint}")
        self.files = weights
        self._readers: dict[str, Callable[[str], Tensor]] = {}
        self._slices: dict[str, Callable[[str], Any]] = {}
        for file in weights.files:
            names, read, part = _opened(file)
            self._readers |= dict.fromkeys(names, read)
            self._slices |= dict.fromkeys(names, part)

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name](name)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of a tensor, of which at most one row is read."""
        tensor = self._slices[name](name)
        shape = tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape
        return (tensor[:1] if shape else tensor[...]).dtype

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def _opened(file: Path) -> tuple[Iterable[str], Callable[[str], Tensor], Callable[[str], Any]]:
    """Return the names of the tensors of ``file``, a function that reads one, in its stored shape and dtype, and one
    that returns it such that slices are read from it."""
    with file.open("rb") as beginning:
        if beginning.read(len(_POINTER)) == _POINTER:
            raise UserError(f"{file}: is git-lfs' pointer to the weights and not the weights; run git lfs pull")
    try:
        if file.suffix == ".safetensors":
            opened: Any = safe_open(file, "pt")
            return opened.keys(), opened.get_tensor, opened.get_slice
        tensors = _unpickled(file)
        return tensors, tensors.__getitem__, tensors.__getitem__
    except UserError:
        raise
    except Exception as error:  # a damaged file makes the libraries raise many kinds
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{file}: asks for {foreign[1]} when it is unpickled, which is not run; take a checkpoint in "
                "safetensors, or save its tensors alone where you trust it"
            ) from None
        if ".tar format" in str(error):
            raise UserError(f"{file}: is of a form that PyTorch left in 2017; save it anew with torch.save") from None
        if isinstance(error, pickle.UnpicklingError):
            raise UserError(f"{file}: is no file that torch.save wrote; copy it again") from None
        raise UserError(f"{file}: is damaged ({one_line(error, lines=1)}); copy it again") from None


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Return the tensors of ``file`` in their shapes and dtypes, memory-mapped if its format allows it."""
    # A file from before PyTorch 1.6 is no zip and cannot be mapped.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a pickle of another protocol is refused anyway
        content: object = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file) or None, weights_only=True)
    if not is_mapping(content):
        raise UserError(f"{file}: holds a {type(content).__name__}, not tensors by name; save those alone")
    for name, value in content.items():
        if type(name) is not str or not isinstance(value, Tensor):
            raise UserError(f"{file}: holds a {type(value).__name__} as {name!r}; save tensors alone, by name")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = (
                "quantized" if value.is_quantized else "meta" if value.is_meta else str(value.layout)[len("torch.") :]
            )
            raise UserError(f"{file}: {name} is a {kind} tensor; save tensors of plain numbers")
    return content


def _indexed(index: Path) -> list[Path]:
    """Return the files that ``index`` names, in the order in which they are read."""
    try:
        names = sorted(set(_read_json(index)["weight_map"].values()))
        files = [index.parent / name for name in names]
    except (KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index}: is damaged ({type(error).__name__}: {error}); copy it again") from None
    if not files:
        raise UserError(f"{index}: names no file; copy the checkpoint again")
    for file in files:
        if file.parent != index.parent:
            raise UserError(f"{index}: names {file}, which lies elsewhere; copy the checkpoint again")
        if not file.is_file():
            raise UserError(f"{file}: is missing; copy the whole checkpoint")
    return files


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = from_json(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: is damaged ({one_line(error, lines=1)}); copy it again") from None
    if not is_mapping(content):
        raise UserError(f"{file}: holds a {type(content).__name__} and no keys; copy it again")
    return content
