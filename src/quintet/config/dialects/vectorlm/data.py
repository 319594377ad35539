"""What VectorLM's keys say of data: processed datasets as they are, or raw ones that are processed on the way."""

from __future__ import annotations

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder, Output
from quintet.config.dialects.vectorlm.disk import positions_of, split_in, splits_of
from quintet.config.dialects.vectorlm.keys import DATA, RAW, TRAIN
from quintet.config.names import local_path

_TRAIN_DS, _EVAL_DS, _LOAD, _SAVE = f"{DATA}.train_ds", f"{DATA}.eval_ds", f"{RAW}.load_path", f"{RAW}.save_path"


def data_rules(given: DialectFile, native: NativeBuilder) -> None:
    """Sources, their packing, and for `quintet prepare` where the processed dataset goes."""
    _length(given, native)
    native.set("data.deduplicate_validation", False)
    if given.purpose == "prepare" and given.has(_LOAD):
        _raw(given, native)
        native.set("data.validation", 0)
        native.set("schedule", {"kind": "constant"})  # nothing is trained, and plateau would ask for an evaluation
        if given.has(_SAVE):
            native.prepare_to = Output(given[_SAVE], given[f"{RAW}.ignore_index"])
        return
    if _on_the_way(given):
        _raw(given, native)
        _validation_of_raw(given, native)
    elif not given.has(_TRAIN_DS):
        given.refuse(_TRAIN_DS, f"is missing: give a processed dataset, or {_LOAD} to process one on the way")
    else:
        _processed(given, native)


def _on_the_way(given: DialectFile) -> bool:
    """Whether the training data are made from load_path, which is there, as no processed dataset is."""
    if not given.has(_LOAD) or not given.has(_TRAIN_DS):
        return given.has(_LOAD)
    return not _is_there(given[_TRAIN_DS]) and (_is_there(given[_LOAD]) or not given[f"{RAW}.from_disk"])


def _is_there(path: str) -> bool:
    return local_path(path).is_dir()


def _length(given: DialectFile, native: NativeBuilder) -> None:
    key = f"{TRAIN}.max_seq_len"
    length = given[key]
    if length <= 0:
        found = positions_of(given["model"])
        if found is None:
            given.refuse(key, f"must be given: {given['model']} has no config.json that says how many positions it has")
            return
        length = found
    if length < 3:
        given.refuse(key, f"{length} tokens have too few targets; give 3 or more")
        return
    native.set("data.sequence_length", length - 1, key if given.has(key) else "model")


def _processed(given: DialectFile, native: NativeBuilder) -> None:
    """Rows as they are, one a sample, without a loss on an end that is not in them."""
    native.set("data.packing", {"kind": "document", "keep_ends": True})
    _rows(given, native, "data.sources[0]", _TRAIN_DS, "train")
    if not given.has(_EVAL_DS):
        _hold_out(native)
        return
    if not _is_there(given[_EVAL_DS]) and given.has(_LOAD) and _same(given[_EVAL_DS], given[_SAVE]):
        given.refuse(_EVAL_DS, "is not there yet; `quintet prepare` with this file writes it from load_path")
    _rows(given, native, "data.validation_sources[0]", _EVAL_DS, "validation", "test", "train")


def _rows(given: DialectFile, native: NativeBuilder, where: str, key: str, *splits: str) -> None:
    """Put the processed dataset that ``key`` names at ``where``: the first of ``splits`` that it has."""
    path, ignored = given[key], given[f"{DATA}.ignore_index"]
    written = given[f"{RAW}.ignore_index"]
    if _same(path, given[_SAVE]) and written != ignored:
        message = f"{ignored} is not the {written} that {RAW}.ignore_index writes into the dataset; make them one"
        given.refuse(f"{DATA}.ignore_index", message)
    document = {"kind": "tokens", "seq_lengths": None, "learn_end": False}
    native.set(
        where, {"kind": "huggingface", "path": path, "split": split_in(path, *splits), "document": document}, key
    )
    native.set(f"{where}.document.ignore_index", ignored, f"{DATA}.ignore_index")


def _same(path: str, other: str | None) -> bool:
    return other is not None and local_path(path) == local_path(other)


def _raw(given: DialectFile, native: NativeBuilder) -> None:
    """Documents of load_path, processed as preprocess_data.py does."""
    _raw_source(given, native, "data.sources[0]")
    _packing(given, native)


def _raw_source(given: DialectFile, native: NativeBuilder, where: str, *keys: str) -> None:
    """Put the documents of load_path at ``where``; ``keys`` say so besides."""
    path, split, on_disk = given[_LOAD], given[f"{RAW}.split"], given[f"{RAW}.from_disk"]
    found = splits_of(path)
    if on_disk and found is None and _is_there(path):
        given.refuse(_LOAD, f"{path} is no folder that save_to_disk wrote; correct it, or set from_disk: false")
    if on_disk and not _is_there(path) and not path.startswith(("/", "~", ".")):
        path = f"./{path}"  # a folder that is missing, and no name on the hub
    if not on_disk and found is not None:
        given.refuse(f"{RAW}.from_disk", f"{path} is a folder that save_to_disk wrote; set it to true")
    if split is None and found is not None and len(found) > 1:
        given.refuse(f"{RAW}.split", f"is missing: {path} has {', '.join(found)}")
    if split is None:
        split = split_in(path, "train")
    native.set(where, {"kind": "huggingface", "path": path}, *keys, _LOAD, f"{RAW}.from_disk")
    native.set(f"{where}.split", split, f"{RAW}.split" if given.has(f"{RAW}.split") else _LOAD)
    separator = given[f"{RAW}.seperator"]
    native.set(f"{where}.document.kind", "text" if separator is None else "conditional", f"{RAW}.seperator")
    if separator is not None:
        native.set(f"{where}.document.separator", separator, f"{RAW}.seperator")
    native.set(f"{where}.document.field", given[f"{RAW}.data_field"], f"{RAW}.data_field")
    native.set(f"{where}.document.prefix", given[f"{RAW}.pre_pend"] or "", f"{RAW}.pre_pend")


def _packing(given: DialectFile, native: NativeBuilder) -> None:
    kind, truncate = given[f"{RAW}.packing_type"], given[f"{RAW}.truncate"]
    native.set("data.packing.keep_ends", False)
    native.set("data.packing.add_bos_eos", given[f"{RAW}.add_bos_eos_tokens"], f"{RAW}.add_bos_eos_tokens")
    if kind is not None and truncate:
        given.refuse(f"{RAW}.truncate", f"cannot be true with packing_type: {kind}; keep one of the two")
    if kind is not None:
        native.set("data.packing.kind", "chunks", f"{RAW}.packing_type")
        native.set("data.packing.join", kind == "full", f"{RAW}.packing_type")
        native.set("data.packing.overlap", given[f"{RAW}.overlap"], f"{RAW}.overlap")
        return
    native.set("data.packing.kind", "document", f"{RAW}.truncate")
    if given[f"{RAW}.overlap"]:
        given.refuse(f"{RAW}.overlap", "is between the chunks of packing_type: full or partial; give one of them")
    if not truncate:
        native.say(
            f"{RAW}.truncate: without packing_type a document is a sample, and what it has beyond max_seq_len tokens "
            "is left out, as with truncate: true"
        )


def _validation_of_raw(given: DialectFile, native: NativeBuilder) -> None:
    """What to evaluate on where the training data are made on the way."""
    train_ds = given[_TRAIN_DS]
    if train_ds is not None:
        native.say(f"{_TRAIN_DS}: {train_ds} is not there, so {given[_LOAD]} is processed on the way")
    if not given.has(_EVAL_DS):
        _hold_out(native)
    elif _same(given[_EVAL_DS], train_ds) or _same(given[_EVAL_DS], given[_SAVE]):
        _raw_source(given, native, "data.validation_sources[0]", _EVAL_DS)
    else:
        given.refuse(
            _EVAL_DS,
            "is processed, and what is to be trained on is not: run `quintet prepare` with this file, and set train_ds "
            "to the save_path that it writes; or leave eval_ds out",
        )


def _hold_out(native: NativeBuilder) -> None:
    native.say(f"{_EVAL_DS}: is not given, so part of the training data is held out to evaluate on (data.validation)")
