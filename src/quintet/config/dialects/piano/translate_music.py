"""Rules for the music of a piano-gpt file: data sets, packing and tokenizer."""

from typing import Any

from quintet.config.data import are_music
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.piano import values
from quintet.config.dialects.piano.schema import File
from quintet.config.keypath import ABSENT, lookup

_BASE, _EXTRA, _SPLITS = "dataset.base_dataset_name", "dataset.extra_datasets", "eval_splits"
_PAUSES = "dataset.pause_detection_threshold"
_SOURCES = ("data.sources", "data.validation_sources")
_TRAINED = ("note_bpe", "saved")
_BASE_SETTINGS = values.SETTINGS | {"min_time_unit": "time_unit"}


def set_music(theirs: File, native: NativeBuilder, saved: dict[str, Any] | None) -> None:
    """Set data, packing and tokenizer, unless the section `quintet:` gives them. ``saved`` is the tokenizer of the run
    that this one starts from."""
    ours = native.given.native
    sources = lookup(ours, ("data", "sources"))
    if sources is not ABSENT and not are_music(sources):
        _say_unused(native, _keys_of(native, *_SOURCES, "data.packing", "tokenizer"), "data.sources")
        return
    if sources is ABSENT:
        _set_data_sets(theirs, native)
    else:
        _say_unused(native, _keys_of(native, *_SOURCES), "data.sources")
    if lookup(ours, ("data", "packing")) is ABSENT:
        _set_packing(theirs, native)
    else:
        _say_unused(native, _keys_of(native, "data.packing"), "data.packing")
    if lookup(ours, ("tokenizer",)) is ABSENT:
        _set_tokenizer(theirs, native, saved)
    else:
        _say_unused(native, _keys_of(native, "tokenizer"), "tokenizer")


def _keys_of(native: NativeBuilder, *sections: str) -> list[str]:
    """Return the keys of the file that decide one of the native ``sections``."""
    keys = (key for key in native.given.dialect.keys if not set(sections).isdisjoint(key.role.native))
    return [key.path for key in keys if native.has(key.path)]


def _say_unused(native: NativeBuilder, keys: list[str], instead: str) -> None:
    if keys:
        native.say(f"{', '.join(keys)}: not used, because quintet.{instead} replaces it")


def _set_data_sets(theirs: File, native: NativeBuilder) -> None:
    base, extra = theirs.dataset.base_dataset_name, theirs.dataset.extra_datasets
    pauses = theirs.dataset.pause_detection_threshold
    held_out = [
        name
        for name in ("validation", "validation_sources")
        if lookup(native.given.native, ("data", name)) is not ABSENT
    ]
    if not extra:
        native.refuse(_EXTRA, "names nothing to train on; give data sets of notes, or quintet.data.sources")
        return
    if "task" in native.given.document.values and base not in extra:
        native.say(f"{_BASE}: only validated on; files before October 2024 also trained on it: add it to {_EXTRA}")
    for index, name in enumerate(extra):
        if not held_out and name == base and values.is_undivided(name):
            native.refuse(_EXTRA, f"{name} is validated on, too; make folders 'train' and 'validation' in it")
            return
        _set_source(native, f"data.sources[{index}]", values.training_source(name, pauses), _EXTRA)
    if held_out:
        _say_unused(native, [key for key in (_BASE, _SPLITS) if native.has(key)], f"data.{held_out[0]}")
        return
    for index, source in enumerate(values.validation_sources(base, theirs.eval_splits, pauses)):
        _set_source(native, f"data.validation_sources[{index}]", source, _BASE)
    if values.FULL in theirs.eval_splits:
        native.set("evaluate.best_by", values.FULL, _SPLITS)


def _set_source(native: NativeBuilder, path: str, source: dict[str, Any], key: str) -> None:
    """Set ``source``, which ``key`` names; other keys give its pauses, label and composer."""
    native.set(path, source, key)
    inner, music = ("document.", source["document"]) if "document" in source else ("", source)
    native.set(f"{path}.{inner}pauses", music["pauses"], _PAUSES)
    if "only_by" in music:
        native.set(f"{path}.{inner}only_by", music["only_by"], _SPLITS)
    if "label" in source:
        native.set(f"{path}.label", source["label"], _SPLITS)
    if "label" in source and "split" in source:
        native.set(f"{path}.split", source["split"], key, _SPLITS)


def _set_packing(theirs: File, native: NativeBuilder) -> None:
    tasks = theirs.stage != values.NEXT_TOKEN
    native.set("data.packing.kind", "tasks" if tasks else "pieces", "stage")
    copies, section = theirs.dataset.augmentation, "dataset.augmentation"
    native.set("data.packing.speeds", list(copies.speed_change_factors), f"{section}.speed_change_factors")
    native.set("data.packing.max_pitch_shift", copies.max_pitch_shift, f"{section}.max_pitch_shift")
    if tasks:
        _set_records(theirs, native)
    elif theirs.tasks:
        native.say(f"tasks: not used, because stage is {values.NEXT_TOKEN}")


def _set_records(theirs: File, native: NativeBuilder) -> None:
    """Set the notes of a record and its tasks."""
    notes_key, most_key = "data.notes_per_record", "training.max_notes_per_record"
    notes, training = theirs.data.notes_per_record, theirs.training
    if training.max_notes_per_record is None:
        native.set("data.packing.notes_per_record", notes, notes_key)
    else:
        if native.has(notes_key) and notes != training.max_notes_per_record:
            native.refuse(most_key, f"is not the {notes} of {notes_key}; keep one of the two")
        native.set("data.packing.notes_per_record", training.max_notes_per_record, most_key)
    if training.min_notes_per_record is not None:
        fewest = "training.min_notes_per_record"
        native.set("data.packing.min_notes_per_record", training.min_notes_per_record, fewest)
    if training.min_n_task_notes is not None:
        native.set("data.packing.min_task_notes", training.min_n_task_notes, "training.min_n_task_notes")
    native.set("data.packing.tasks", theirs.tasks, "tasks")


def _set_tokenizer(theirs: File, native: NativeBuilder, saved: dict[str, Any] | None) -> None:
    if saved is not None:
        trained = saved.get("kind") in _TRAINED  # on that run's data; this run may have other data
        native.set("tokenizer", {"kind": "saved", "path": theirs.init_from} if trained else saved, "init_from")
        if unused := native.within("tokenizer"):
            native.say(f"{', '.join(unused)}: not used, because the tokenizer is that of {theirs.init_from}")
        return
    tokenizer, is_awesome = theirs.tokenizer, theirs.tokenizer.class_name == values.AWESOME
    others = ("config",) if is_awesome else ("base_tokenizer", "base_tokenizer_parameters")
    for path in filter(native.has, (f"tokenizer.{name}" for name in others)):
        owner = values.EXPONENTIAL if is_awesome else values.AWESOME
        native.refuse(path, f"belongs to {owner}, and tokenizer.class_name is another; leave it out")
    if is_awesome:
        native.set("tokenizer.kind", "note_bpe", "tokenizer.class_name")
        native.set("tokenizer.base.kind", "exponential_time", "tokenizer.base_tokenizer")
        base = tokenizer.base_tokenizer_parameters
        _set_settings(native, "tokenizer.base_tokenizer_parameters", base, _BASE_SETTINGS, "tokenizer.base")
        _set_settings(native, "tokenizer.parameters", tokenizer.parameters, values.MERGES, "tokenizer")
        return
    native.set("tokenizer.kind", "exponential_time", "tokenizer.class_name")
    if tokenizer.config is not None and tokenizer.parameters is not None:
        native.refuse("tokenizer.parameters", "repeats tokenizer.config, as older files call it; keep one of the two")
    _set_settings(native, "tokenizer.config", tokenizer.config, _BASE_SETTINGS, "tokenizer")
    _set_settings(native, "tokenizer.parameters", tokenizer.parameters, _BASE_SETTINGS, "tokenizer")


def _set_settings(
    native: NativeBuilder, key: str, settings: dict[str, Any] | None, names: dict[str, str], section: str
) -> None:
    """Set the native keys in ``section`` that ``names`` gives for the ``settings`` of ``key``."""
    for name, value in (settings or {}).items():
        if name in names:
            native.set(f"{section}.{names[name]}", value, key)
        else:
            native.refuse(key, f"has no setting {name!r}; there are {', '.join(names)}")
