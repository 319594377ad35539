"""Rules for VectorLM's data: processed datasets as they are, or documents that are processed on the fly."""

from pathlib import Path
from typing import Any

from quintet.config.data import DataConfig
from quintet.config.dialects.native import NativeBuilder, Output
from quintet.config.dialects.vectorlm.schema import DATA, RAW, TRAIN, Dataset, DatasetPreprocess, File
from quintet.config.keypath import is_mapping
from quintet.config.names import local_path
from quintet.files import from_json

TRAIN_DS, EVAL_DS, LOAD = f"{DATA}.train_ds", f"{DATA}.eval_ds", f"{RAW}.load_path"
# Names in config.json for the number of positions of a model, the usual one first.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def data_rules(theirs: File, native: NativeBuilder) -> None:
    """Set the sources, their packing, and for `quintet prepare` the folder of the processed dataset."""
    data, raw = theirs.dataset, theirs.dataset_preprocess
    _length(theirs, native)
    native.set("data.deduplicate_validation", False)
    if native.given.purpose == "prepare" and raw.load_path is not None:
        _raw(raw, raw.load_path, native)
        native.set("data.validation", 0)
        native.set("schedule", {"kind": "constant"})  # without training; plateau would need an evaluation
        if raw.save_path is not None:
            native.prepare_to = Output(raw.save_path, raw.ignore_index)
    elif raw.load_path is not None and _on_the_fly(data, raw, raw.load_path):
        _raw(raw, raw.load_path, native)
        _validation_of_raw(data, raw, raw.load_path, native)
    elif data.train_ds is None:
        native.refuse(TRAIN_DS, f"is missing: give a processed dataset, or {LOAD} to process one on the fly")
    else:
        _processed(theirs, data.train_ds, native)


def _on_the_fly(data: Dataset, raw: DatasetPreprocess, load_path: str) -> bool:
    """Return True if the training data are to be made from ``load_path``: there is no processed dataset yet."""
    if data.train_ds is None:
        return True
    return not _is_there(data.train_ds) and (_is_there(load_path) or not raw.from_disk)


def _is_there(path: str) -> bool:
    return local_path(path).is_dir()


def _length(theirs: File, native: NativeBuilder) -> None:
    key, length = f"{TRAIN}.max_seq_len", theirs.train_parameters.max_seq_len
    if length <= 0:
        length = _positions_of(theirs.model)
    if length is None:
        if native.has("model"):  # else the missing model is the problem
            assumed = DataConfig.model_fields["sequence_length"].default
            message = f"is not given, and {theirs.model} has no config.json with the number of positions"
            native.lack(key, f"{message}; {assumed:,} are assumed")
        return
    if length < 3:
        native.refuse(key, f"{length} tokens have too few targets; give 3 or more")
        return
    native.set("data.sequence_length", length - 1, key if native.has(key) else "model")


def _processed(theirs: File, train_ds: str, native: NativeBuilder) -> None:
    """Set processed datasets: each row is a sample, and no end of document is added."""
    eval_ds, raw = theirs.dataset.eval_ds, theirs.dataset_preprocess
    native.set("data.packing", {"kind": "document", "keep_ends": True})
    _rows(theirs, native, "data.sources[0]", train_ds, TRAIN_DS, "train")
    if eval_ds is None:
        _hold_out(native)
        return
    if not _is_there(eval_ds) and raw.load_path is not None and _same(eval_ds, raw.save_path):
        native.lack(EVAL_DS, f"there is no {eval_ds} yet; `quintet prepare` with this file writes it from load_path")
    _rows(theirs, native, "data.validation_sources[0]", eval_ds, EVAL_DS, "validation", "test", "train")


def _rows(theirs: File, native: NativeBuilder, source: str, path: str, key: str, *splits: str) -> None:
    """Set ``source`` to the processed dataset ``path`` that ``key`` names, with the first of ``splits`` it has."""
    data, raw = theirs.dataset, theirs.dataset_preprocess
    if _same(path, raw.save_path) and raw.ignore_index != data.ignore_index:
        message = f"is {data.ignore_index}, and {RAW}.ignore_index writes {raw.ignore_index} into this dataset"
        native.refuse(f"{DATA}.ignore_index", f"{message}; make them equal")
    document = {"kind": "tokens", "seq_lengths": None, "learn_end": False}
    rows = {"kind": "huggingface", "path": path, "split": _split_in(path, *splits), "document": document}
    native.set(source, rows, key)
    native.set(f"{source}.document.ignore_index", data.ignore_index, f"{DATA}.ignore_index")


def _same(path: str | None, other: str | None) -> bool:
    return path is not None and other is not None and local_path(path) == local_path(other)


def _raw(raw: DatasetPreprocess, load_path: str, native: NativeBuilder) -> None:
    """Set the documents of load_path, processed as VectorLM's preprocess_data.py does."""
    _raw_source(raw, load_path, native, "data.sources[0]")
    _packing(raw, native)


def _raw_source(raw: DatasetPreprocess, path: str, native: NativeBuilder, source: str, *keys: str) -> None:
    """Set ``source`` to the documents of load_path, which is ``path``; ``keys`` are further reasons for it."""
    splits = splits_of(path)
    if raw.from_disk and splits is None and _is_there(path):
        native.refuse(LOAD, f"{path} is no folder that save_to_disk wrote; correct it, or set from_disk: false")
    if not raw.from_disk and splits is not None:
        native.refuse(f"{RAW}.from_disk", f"{path} is a folder that save_to_disk wrote; set it to true")
    if raw.split is None and splits is not None and len(splits) > 1:
        native.refuse(f"{RAW}.split", f"is missing; choose one of {path}: {', '.join(splits)}")
    split = raw.split or _split_in(path, "train")
    if raw.from_disk and not _is_there(path) and not path.startswith(("/", "~", ".")):
        path = f"./{path}"  # a missing folder, and not a name on the hub
    native.set(source, {"kind": "huggingface", "path": path}, *keys, LOAD, f"{RAW}.from_disk")
    native.set(f"{source}.split", split, f"{RAW}.split" if raw.split is not None else LOAD)
    native.set(f"{source}.document.kind", "text" if raw.seperator is None else "conditional", f"{RAW}.seperator")
    if raw.seperator is not None:
        native.set(f"{source}.document.separator", raw.seperator, f"{RAW}.seperator")
    native.set(f"{source}.document.field", raw.data_field, f"{RAW}.data_field")
    native.set(f"{source}.document.prefix", raw.pre_pend or "", f"{RAW}.pre_pend")


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
        native.refuse(f"{RAW}.overlap", "is for the chunks of packing_type: full or partial; set one of them")
    if not raw.truncate:
        native.say(
            f"{RAW}.truncate: without packing_type each document is a sample, truncated to max_seq_len tokens as with "
            "truncate: true"
        )


def _validation_of_raw(data: Dataset, raw: DatasetPreprocess, load_path: str, native: NativeBuilder) -> None:
    """Set the data to evaluate on if the training data are made on the fly."""
    if data.train_ds is not None:
        native.say(f"{TRAIN_DS}: {data.train_ds} does not exist, so {load_path} is processed on the fly")
    if data.eval_ds is None:
        _hold_out(native)
    elif _same(data.eval_ds, data.train_ds) or _same(data.eval_ds, raw.save_path):
        _raw_source(raw, load_path, native, "data.validation_sources[0]", EVAL_DS)
    else:
        native.refuse(
            EVAL_DS,
            "is processed, and the training data are not: run `quintet prepare` with this file, and set train_ds to "
            "the save_path that it writes; or leave eval_ds out",
        )


def _hold_out(native: NativeBuilder) -> None:
    native.say(f"{EVAL_DS}: is not given, so part of the training data is held out to evaluate on (data.validation)")


def splits_of(path: str) -> list[str] | None:
    """Return the splits of the dataset that save_to_disk wrote to ``path``, None if there is no such dataset.

    A single dataset has one split: the name it was saved under, or train if it had none.
    """
    folder = local_path(path)
    dictionary, single = _json(folder / "dataset_dict.json"), _json(folder / "state.json")
    if dictionary is not None:
        return [str(name) for name in dictionary.get("splits", [])]
    return None if single is None else [str(single.get("_split") or "train")]


def _split_in(path: str, *names: str) -> str:
    """Return the first of ``names`` that the dataset at ``path`` has, else its only split, else the first name."""
    splits = splits_of(path) or []
    known = [name for name in names if name in splits]
    return known[0] if known else splits[0] if len(splits) == 1 else names[0]


def _positions_of(path: str) -> int | None:
    """Return the number of positions of the checkpoint in the folder ``path``, None if it does not give one."""
    settings = _json(local_path(path) / "config.json") or {}
    return next((settings[name] for name in _POSITIONS if isinstance(settings.get(name), int)), None)


def _json(file: Path) -> dict[str, Any] | None:
    try:
        values = from_json(file.read_bytes())
    except (OSError, ValueError):
        return None
    return values if is_mapping(values) else None
