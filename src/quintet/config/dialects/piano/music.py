"""What the keys of the music say together: which data sets, how they become samples, and the tokenizer."""

from __future__ import annotations

from typing import Any

from quintet.config.data import are_music
from quintet.config.dialects.given import DialectFile
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.piano.datasets import NoSplit, training_source, validation_sources, without_splits
from quintet.config.dialects.piano.music_keys import AWESOME, FULL, MUSIC, NEXT_TOKEN, STAGE, TASKS
from quintet.config.keypath import ABSENT, lookup

_BASE, _EXTRA, _SPLITS = "dataset.base_dataset_name", "dataset.extra_datasets", "eval_splits"
_PAUSES = "dataset.pause_detection_threshold"
_DATA_SETS = (_BASE, _EXTRA, _PAUSES, _SPLITS)
_HELD_OUT = ("validation", "validation_sources")
_RECORDS = {
    "training.min_notes_per_record": "min_notes_per_record",
    "training.min_n_task_notes": "min_task_notes",
}
_AUGMENTATION = {
    "dataset.augmentation.speed_change_factors": "speeds",
    "dataset.augmentation.max_pitch_shift": "max_pitch_shift",
}
_SETTINGS = {
    "time_unit": "time_unit",
    "min_time_unit": "time_unit",
    "max_time_step": "max_time_step",
    "n_velocity_bins": "velocity_bins",
    "n_special_ids": "special_tokens",
}
_TRAINED = ("note_bpe", "saved")
_MERGES = {"max_vocab_size": "vocab_size", "max_token_length": "max_token_length"}


def music(given: DialectFile, native: NativeBuilder, theirs: dict[str, Any] | None) -> None:
    """Data, packing and tokenizer, as far as the section `quintet:` does not say them. ``theirs`` is the tokenizer of
    the run that this one starts from."""
    sources = lookup(given.native, ("data", "sources"))
    on_text = sources is not ABSENT and not are_music(sources)
    keys = [key.path for key in (*STAGE, *TASKS, *MUSIC)] + [_SPLITS]
    if on_text:
        _unused(given, native, keys, "data.sources")
        return
    if sources is ABSENT:
        _data_sets(given, native)
    else:
        _unused(given, native, _DATA_SETS, "data.sources")
    if lookup(given.native, ("data", "packing")) is ABSENT:
        _packing(given, native)
    else:
        packing = [path for path in keys if path not in _DATA_SETS and not path.startswith("tokenizer.")]
        _unused(given, native, packing, "data.packing")
    if lookup(given.native, ("tokenizer",)) is ABSENT:
        _tokenizer(given, native, theirs)
    else:
        _unused(given, native, given.within("tokenizer"), "tokenizer")


def _unused(given: DialectFile, native: NativeBuilder, paths: Any, instead: str) -> None:
    found = [path for path in paths if given.has(path)]
    if found:
        native.say(f"{', '.join(found)}: not used, for quintet.{instead} says it instead")


def _data_sets(given: DialectFile, native: NativeBuilder) -> None:
    base, extra, pauses = given[_BASE], given[_EXTRA], given[_PAUSES]
    held_out = [name for name in _HELD_OUT if lookup(given.native, ("data", name)) is not ABSENT]
    if not extra:
        given.refuse(_EXTRA, "names nothing to train on; give data sets of notes, or quintet.data.sources")
        return
    for index, name in enumerate(extra):
        if not held_out and name == base and without_splits(name):
            given.refuse(_EXTRA, f"{name} is validated on, too; make folders 'train' and 'validation' in it")
            return
        try:
            _source(native, f"data.sources[{index}]", training_source(name, pauses), _EXTRA)
        except NoSplit as missing:
            given.refuse(_EXTRA, str(missing))
            return
    if held_out:
        _unused(given, native, (_BASE, _SPLITS), f"data.{held_out[0]}")
        return
    try:
        found = validation_sources(base, given[_SPLITS], pauses)
    except NoSplit as missing:
        given.refuse(_BASE, str(missing))
        return
    for index, source in enumerate(found):
        _source(native, f"data.validation_sources[{index}]", source, _BASE)
    if FULL in given[_SPLITS]:
        native.set("evaluate.best_by", FULL, _SPLITS)


def _source(native: NativeBuilder, where: str, source: dict[str, Any], key: str) -> None:
    """Put ``source``, which ``key`` names, at ``where``; other keys say its pauses, label and composer."""
    native.set(where, source, key)
    inner, music = ("document.", source["document"]) if "document" in source else ("", source)
    native.set(f"{where}.{inner}pauses", music["pauses"], _PAUSES)
    if "only_by" in music:
        native.set(f"{where}.{inner}only_by", music["only_by"], _SPLITS)
    if "label" in source:
        native.set(f"{where}.label", source["label"], _SPLITS)
    if "label" in source and "split" in source:
        native.set(f"{where}.split", source["split"], key, _SPLITS)


def _packing(given: DialectFile, native: NativeBuilder) -> None:
    tasks = given["stage"] != NEXT_TOKEN
    native.set("data.packing.kind", "tasks" if tasks else "pieces", "stage")
    for key, name in _AUGMENTATION.items():
        native.set(f"data.packing.{name}", given[key], key)
    if tasks:
        _records(given, native)
    elif given["tasks"]:
        native.say(f"tasks: not used, as stage is {NEXT_TOKEN}")


def _records(given: DialectFile, native: NativeBuilder) -> None:
    """Notes of a record and its tasks."""
    whole, most = "data.notes_per_record", "training.max_notes_per_record"
    if given.has(whole) and given.has(most) and given[whole] != given[most]:
        given.refuse(most, f"is not the {given[whole]} of {whole}; keep one of the two")
    key = most if given.has(most) else whole
    native.set("data.packing.notes_per_record", given[key], key)
    for key, name in _RECORDS.items():
        if given.has(key):
            native.set(f"data.packing.{name}", given[key], key)
    native.set("data.packing.tasks", given["tasks"], "tasks")


def _tokenizer(given: DialectFile, native: NativeBuilder, theirs: dict[str, Any] | None) -> None:
    if theirs is not None:
        trained = theirs.get("kind") in _TRAINED  # on their data, and ours may be others
        native.set("tokenizer", {"kind": "saved", "path": given["init_from"]} if trained else theirs, "init_from")
        said = given.within("tokenizer")
        if said:
            native.say(f"{', '.join(said)}: not used, for the tokenizer is that of {given['init_from']}")
        return
    awesome = given["tokenizer.class_name"] == AWESOME
    others = ("config",) if awesome else ("base_tokenizer", "base_tokenizer_parameters", "parameters")
    for path in (f"tokenizer.{name}" for name in others):
        if given.has(path):
            of = "ExponentialTimeTokenizer" if awesome else AWESOME
            given.refuse(path, f"belongs to {of}, and tokenizer.class_name is another; leave it out")
    if not awesome:
        native.set("tokenizer.kind", "exponential_time", "tokenizer.class_name")
        _settings(given, native, "tokenizer.config", _SETTINGS, "tokenizer")
        return
    native.set("tokenizer.kind", "note_bpe", "tokenizer.class_name")
    native.set("tokenizer.base.kind", "exponential_time", "tokenizer.base_tokenizer")
    _settings(given, native, "tokenizer.base_tokenizer_parameters", _SETTINGS, "tokenizer.base")
    _settings(given, native, "tokenizer.parameters", _MERGES, "tokenizer")


def _settings(given: DialectFile, native: NativeBuilder, key: str, names: dict[str, str], section: str) -> None:
    """Each setting in the mapping ``key`` to the native key of its name in ``section``."""
    for name, value in (given[key] or {}).items():
        if name in names:
            native.set(f"{section}.{names[name]}", value, key)
        else:
            given.refuse(key, f"has no setting {name!r}; there are {', '.join(names)}")
