"""Rules for VectorLM's data: processed datasets as they are, or raw ones that are processed on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quintet.config.data import DataConfig
from quintet.config.dialects.native import NativeBuilder, Output
from quintet.config.dialects.vectorlm.schema import Dataset, DatasetPreprocess, File
from quintet.config.keypath import is_mapping
from quintet.config.names import local_path
from quintet.files import from_json

TRAIN, DATA, RAW = "train_parameters", "dataset", "dataset_preprocess"
TRAIN_DS, EVAL_DS, LOAD = f"{DATA}.train_ds", f"{DATA}.eval_ds", f"{RAW}.load_path"
# Names of the model's number of positions in config.json, the usual one first.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def data_rules(theirs: File, native: NativeBuilder) -> None:
    """Sources, their packing, and for `quintet prepare` where the processed dataset goes."""
    data, raw = theirs.dataset, theirs.dataset_preprocess
    _length(theirs, native)
    native.set("data.deduplicate_validation", False)
    if native.given.purpose == "prepare" and raw.load_path is not None:
        _raw(raw, raw.load_path, native)
        native.set("data.validation", 0)
        native.set("schedule", {"kind": "constant"})  # nothing is trained, and plateau would ask for an evaluation
        if raw.save_path is not None:
            native.prepare_to = Output(raw.save_path, raw.ignore_index)
    elif raw.load_path is not None and _on_the_way(data, raw, raw.load_path):
        _raw(raw, raw.load_path, native)
        _validation_of_raw(data, raw, raw.load_path, native)
    elif data.train_ds is None:
        native.refuse(TRAIN_DS, f"is missing: give a processed dataset, or {LOAD} to process one on the way")
    else:
        _processed(theirs, data.train_ds, native)


def _on_the_way(data: Dataset, raw: DatasetPreprocess, load_path: str) -> bool:
    """True if the training data are made from ``load_path``, which is there, as no processed dataset is."""
    if data.train_ds is None:
        return True
    return not _is_there(data.train_ds) and (_is_there(load_path) or not raw.from_disk)


def _is_there(path: str) -> bool:
    return local_path(path).is_dir()


def _length(theirs: File, native: NativeBuilder) -> None:
    key = f"{TRAIN}.max_seq_len"
    length = theirs.train_parameters.max_seq_len
    if length <= 0:
        found = positions_of(theirs.model)
        if found is None and not native.has("model"):  # which is told, and what stands for it has no positions
            return
        if found is None:
            native.lack(
                key,
                f"is not given, and {theirs.model} has no config.json here that says how many positions it has; "
                f"{DataConfig.model_fields['sequence_length'].default:,} stand for them",
            )
            return
        length = found
    if length < 3:
        native.refuse(key, f"{length} tokens have too few targets; give 3 or more")
        return
    native.set("data.sequence_length", length - 1, key if native.has(key) else "model")


def _processed(theirs: File, train_ds: str, native: NativeBuilder) -> None:
    """Rows as they are, one a sample, without a loss on an end that is not in them."""
    eval_ds, raw = theirs.dataset.eval_ds, theirs.dataset_preprocess
    native.set("data.packing", {"kind": "document", "keep_ends": True})
    _rows(theirs, native, "data.sources[0]", TRAIN_DS, split_in(train_ds, "train"))
    if eval_ds is None:
        _hold_out(native)
        return
    if not _is_there(eval_ds) and raw.load_path is not None and _same(eval_ds, raw.save_path):
        native.lack(EVAL_DS, f"there is no {eval_ds} yet; `quintet prepare` with this file writes it from load_path")
    _rows(theirs, native, "data.validation_sources[0]", EVAL_DS, split_in(eval_ds, "validation", "test", "train"))


def _rows(theirs: File, native: NativeBuilder, where: str, key: str, split: str) -> None:
    """Put ``split`` of the processed dataset that ``key`` names at ``where``."""
    data, raw = theirs.dataset, theirs.dataset_preprocess
    path = data.train_ds if key == TRAIN_DS else data.eval_ds
    if _same(path, raw.save_path) and raw.ignore_index != data.ignore_index:
        says = f"{data.ignore_index} is not the {raw.ignore_index} that {RAW}.ignore_index writes into the dataset"
        native.refuse(f"{DATA}.ignore_index", f"{says}; make them one")
    document = {"kind": "tokens", "seq_lengths": None, "learn_end": False}
    native.set(where, {"kind": "huggingface", "path": path, "split": split, "document": document}, key)
    native.set(f"{where}.document.ignore_index", data.ignore_index, f"{DATA}.ignore_index")


def _same(path: str | None, other: str | None) -> bool:
    return path is not None and other is not None and local_path(path) == local_path(other)


def _raw(raw: DatasetPreprocess, load_path: str, native: NativeBuilder) -> None:
    """Documents of load_path, processed as preprocess_data.py does."""
    _raw_source(raw, load_path, native, "data.sources[0]")
    _packing(raw, native)


def _raw_source(raw: DatasetPreprocess, path: str, native: NativeBuilder, where: str, *keys: str) -> None:
    """Put the documents of load_path, which is ``path``, at ``where``; ``keys`` say so besides."""
    found = splits_of(path)
    if raw.from_disk and found is None and _is_there(path):
        native.refuse(LOAD, f"{path} is no folder that save_to_disk wrote; correct it, or set from_disk: false")
    if not raw.from_disk and found is not None:
        native.refuse(f"{RAW}.from_disk", f"{path} is a folder that save_to_disk wrote; set it to true")
    if raw.split is None and found is not None and len(found) > 1:
        native.refuse(f"{RAW}.split", f"is missing: {path} has {', '.join(found)}")
    split = raw.split or split_in(path, "train")
    if raw.from_disk and not _is_there(path) and not path.startswith(("/", "~", ".")):
        path = f"./{path}"  # a folder that is missing, and no name on the hub
    native.set(where, {"kind": "huggingface", "path": path}, *keys, LOAD, f"{RAW}.from_disk")
    native.set(f"{where}.split", split, f"{RAW}.split" if raw.split is not None else LOAD)
    native.set(f"{where}.document.kind", "text" if raw.seperator is None else "conditional", f"{RAW}.seperator")
    if raw.seperator is not None:
        native.set(f"{where}.document.separator", raw.seperator, f"{RAW}.seperator")
    native.set(f"{where}.document.field", raw.data_field, f"{RAW}.data_field")
    native.set(f"{where}.document.prefix", raw.pre_pend or "", f"{RAW}.pre_pend")


def _packing(raw: DatasetPreprocess, native: NativeBuilder) -> None:
    kind = raw.packing_type
    native.set("data.packing.keep_ends", False)
    native.set("data.packing.add_bos_eos", raw.add_bos_eos_tokens, f"{RAW}.add_bos_eos_tokens")
    if kind is not None and raw.truncate:
        native.refuse(f"{RAW}.truncate", f"cannot be true with packing_type: {kind}; keep one of the two")
    if kind is not None:
        native.set("data.packing.kind", "chunks", f"{RAW}.packing_type")
        native.set("data.packing.join", kind == "full", f"{RAW}.packing_type")
        native.set("data.packing.overlap", raw.overlap, f"{RAW}.overlap")
        return
    native.set("data.packing.kind", "document", f"{RAW}.truncate")
    if raw.overlap:
        native.refuse(f"{RAW}.overlap", "is between the chunks of packing_type: full or partial; give one of them")
    if not raw.truncate:
        native.say(
            f"{RAW}.truncate: without packing_type a document is a sample, and what it has beyond max_seq_len tokens "
            "is left out, as with truncate: true"
        )


def _validation_of_raw(data: Dataset, raw: DatasetPreprocess, load_path: str, native: NativeBuilder) -> None:
    """Set what to evaluate on where the training data are made on the way."""
    if data.train_ds is not None:
        native.say(f"{TRAIN_DS}: {data.train_ds} is not there, so {load_path} is processed on the way")
    if data.eval_ds is None:
        _hold_out(native)
    elif _same(data.eval_ds, data.train_ds) or _same(data.eval_ds, raw.save_path):
        _raw_source(raw, load_path, native, "data.validation_sources[0]", EVAL_DS)
    else:
        native.refuse(
            EVAL_DS,
            "is processed, and what is to be trained on is not: run `quintet prepare` with this file, and set train_ds "
            "to the save_path that it writes; or leave eval_ds out",
        )


def _hold_out(native: NativeBuilder) -> None:
    native.say(f"{EVAL_DS}: is not given, so part of the training data is held out to evaluate on (data.validation)")


def splits_of(path: str) -> list[str] | None:
    """The splits of the dataset that save_to_disk wrote to ``path``; None where there is no such dataset.

    A dataset by itself has one split, the name it was saved under, which is train where it had none.
    """
    folder = local_path(path)
    several, one = _json(folder / "dataset_dict.json"), _json(folder / "state.json")
    if several is not None:
        return [str(name) for name in several.get("splits", [])]
    return None if one is None else [str(one.get("_split") or "train")]


def split_in(path: str, *wanted: str) -> str:
    """The first of ``wanted`` that the dataset at ``path`` has, else its only split, else the first of ``wanted``."""
    found = splits_of(path) or []
    held = [name for name in wanted if name in found]
    return held[0] if held else found[0] if len(found) == 1 else wanted[0]


def positions_of(path: str) -> int | None:
    """Most positions of the checkpoint in the folder ``path``, None where it does not say."""
    settings = _json(local_path(path) / "config.json") or {}
    found = [settings[name] for name in _POSITIONS if isinstance(settings.get(name), int)]
    return found[0] if found else None


def _json(file: Path) -> dict[str, Any] | None:
    try:
        found = from_json(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if is_mapping(found) else None
