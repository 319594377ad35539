"""What PhyAGI's datasets and collator are here: sources of token arrays, and ids without a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.names import local_path

FILES = ("cache_dir", "train_file", "dataset_path")


def data_rules(given: DialectFile, native: NativeBuilder) -> None:
    """Sources, tokenizer, order, and what has a loss."""
    count = given.count("dataset")
    if not count:
        given.refuse("dataset", "is missing: name at least one dataset with cache_dir or train_file")
        return
    if given["dataset_provider"] == "chat":
        given.refuse("dataset_provider", "chat is for reinforcement learning, which there is none of here; use lm")
    for name in ("dataset_concat", "eval_dataset_concat"):
        if given[name] == "random_chat":
            given.refuse(name, "random_chat is for dataset_provider: chat; use random")
    if given["dataset_collator.cls"] == "chat":
        given.refuse("dataset_collator.cls", "chat is for dataset_provider: chat; use lm")
    for index in range(count):
        _source(given, native, index)
    _validation(given, native, count)
    _samples(given, native, count)
    _tokenizer(given, native, count)
    _loss(given, native)


def _at(index: int, name: str) -> str:
    return f"dataset[{index}].{name}"


def train_path(given: DialectFile, index: int) -> tuple[str, str]:
    """File of dataset ``index`` to train on, and the key that says so; both empty, and said, where none does."""
    named = [name for name in FILES if given.has(_at(index, name))]
    if not named:
        given.refuse(f"dataset[{index}]", "names no data; give cache_dir or train_file")
        return "", ""
    if len(named) > 1:
        given.refuse(_at(index, named[1]), f"cannot be given together with {named[0]}, which names the same; keep one")
    path = _expanded(given[_at(index, named[0])])
    if named[0] == "cache_dir" and path.suffix != ".npy":
        path = path / "train.npy"
    return str(path), _at(index, named[0])


def _expanded(text: str) -> Path:
    return local_path(text)


def _source(given: DialectFile, native: NativeBuilder, index: int) -> None:
    where = f"data.sources[{index}]"
    path, key = train_path(given, index)
    if not path:
        return
    native.set(f"{where}.kind", "npy", key)
    native.set(f"{where}.path", path, key)
    _label(given, native, where, index)
    factors = [_at(index, "weight"), "dataset_global_weight"]
    repeat = given[factors[0]] * given[factors[1]]
    if repeat != 1:
        native.set(f"{where}.repeat", repeat, *factors)
    start = given[_at(index, "validation_split")]
    if start:
        native.set(f"{where}.start", start, _at(index, "validation_split"))
    _marks(given, native, where)


def _label(given: DialectFile, native: NativeBuilder, where: str, index: int) -> None:
    label = given[_at(index, "label")]
    native.set(f"{where}.label", str(index) if label is None else label, _at(index, "label"))


def _marks(given: DialectFile, native: NativeBuilder, where: str) -> None:
    """What ends a document, and which labels have no loss."""
    if given["dataset_collator.ignore_index"] != -100:
        native.set(f"{where}.ignore_index", given["dataset_collator.ignore_index"], "dataset_collator.ignore_index")
    if given["model.cross_sample_token_id"] is not None:
        native.set(f"{where}.document", "end_id", "model.cross_sample_token_id")


def validation_file(given: DialectFile, index: int) -> tuple[str, str]:
    """File of dataset ``index`` to validate on and its key; both empty where there is none."""
    key, folder = _at(index, "validation_file"), _at(index, "cache_dir")
    if given.has(key):
        if given.has(folder):
            given.refuse(key, "cannot be given together with cache_dir, which says where it is; keep one")
        return str(_expanded(given[key])), key
    found = _expanded(given[folder]) / "validation.npy" if given.has(folder) else None
    return (str(found), folder) if found is not None and found.is_file() else ("", "")


def _validation(given: DialectFile, native: NativeBuilder, count: int) -> None:
    """Validation sources: of each dataset its file, or the first part of its training file."""
    number, together = 0, given["eval_dataset_concat"] is not None
    for index in range(count):
        where = f"data.validation_sources[{number}]"
        split = _at(index, "validation_split")
        if given[split]:
            length = given[_at(index, "seq_len")]
            if isinstance(given[split], int) and given[split] < length:
                given.refuse(
                    split, f"{given[split]} tokens hold no sample of seq_len {length}; give more, or a fraction as 0.1"
                )
            path, key = train_path(given, index)[0], split
            if given.has(_at(index, "validation_file")):
                native.say(f"{_at(index, 'validation_file')}: is not read, for validation_split stands instead of it")
        else:
            path, key = validation_file(given, index)
        if not path:
            continue
        native.set(f"{where}.kind", "npy", key)
        native.set(f"{where}.path", path, key)
        if together:
            native.set(f"{where}.label", "0", "eval_dataset_concat")
        else:
            _label(given, native, where, index)
        if key == split:
            native.set(f"{where}.stop", given[split], split)
        _marks(given, native, where)
        number += 1
    if not number:
        native.set("data.validation", 0)
    native.set("data.deduplicate_validation", False)


def _samples(given: DialectFile, native: NativeBuilder, count: int) -> None:
    """Length, packing, order."""
    for name in ("seq_len", "shift_labels"):
        found = [given[_at(index, name)] for index in range(count)]
        for index, value in enumerate(found):
            if value != found[0]:
                given.refuse(_at(index, name), f"is {value!r}, and that of dataset[0] is {found[0]!r}; make them equal")
    native.set("data.sequence_length", given["dataset[0].seq_len"], "dataset[0].seq_len")
    shifted, by_model = given["dataset[0].shift_labels"], given["model.architecture.loss.shift_labels"]
    if not shifted and not by_model:
        given.refuse(
            "model.architecture.loss.shift_labels",
            "false has each token predict itself, unless dataset[0].shift_labels is true; set one of the two",
        )
    native.set("data.packing.kind", "stream", "dataset_provider")
    native.set("data.packing.predict_next", shifted, "dataset[0].shift_labels")
    native.set("data.mixing", "sequential" if given["dataset_concat"] == "sequential" else "random", "dataset_concat")
    streamed = given["dataset_provider"] == "stream_lm" and (count == 1 or given["dataset_concat"] == "sequential")
    shuffle = "training_args.dataloader_shuffle"
    native.set("data.shuffle", given[shuffle] and not streamed, *(["dataset_provider"] if streamed else [shuffle]))


def _tokenizer(given: DialectFile, native: NativeBuilder, count: int) -> None:
    """The tokenizer that is named, one that lies beside the data, or ids alone."""
    cross = given["model.cross_sample_token_id"]
    named = [_at(index, "tokenizer_file") for index in range(count) if given.has(_at(index, "tokenizer_file"))]
    for key in named[1:]:
        if given[key] != given[named[0]]:
            given.refuse(key, f"is not the {given[named[0]]!r} of {named[0]}; a run has one tokenizer")
    found: list[tuple[Any, str]] = [(_expanded(given[key]), key) for key in named]
    for index in range(count):
        folder = _at(index, "cache_dir")
        beside = _expanded(given[folder]) / "tokenizer.pkl" if given.has(folder) else None
        if beside is not None and beside.is_file():
            found.append((beside, folder))
    if found and cross is None:
        native.set("tokenizer", {"kind": "huggingface", "path": str(found[0][0])}, found[0][1])
        return
    if found:
        native.say(
            f"{found[0][1]}: the tokenizer is not used, for model.cross_sample_token_id says what ends documents"
        )
    if given.has("model.pretrained_model_name_or_path") and not given.has("model.vocab_size"):
        return  # the model's own tokenizer
    native.set("tokenizer", {"kind": "ids", "vocab_size": given["model.vocab_size"]}, "model.vocab_size")
    if cross is not None:
        native.set("tokenizer.end_id", cross, "model.cross_sample_token_id")


def _loss(given: DialectFile, native: NativeBuilder) -> None:
    ids, index = "dataset_collator.ignore_token_ids", "dataset_collator.ignore_index"
    never = list(given[ids] or [])
    if given[index] >= 0 and given[index] not in never:
        never.append(given[index])
    if never:
        native.set(
            "loss.ignore_token_ids", never, *([ids] if given[ids] else []), *([index] if given[index] >= 0 else [])
        )
    span = given["dataset_collator.ignore_token_range"]
    if span is None or span == (None, None):
        return
    last = given["model.vocab_size"] - 1
    native.set(
        "loss.ignore_token_range",
        [span[0] or 0, last if span[1] is None else span[1]],
        "dataset_collator.ignore_token_range",
    )
