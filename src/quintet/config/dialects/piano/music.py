"""The music of piano-gpt: which data sets, how they become samples, and the tokenizer; and the way back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from quintet.config.data import are_music
from quintet.config.dialects.dialect import Put
from quintet.config.dialects.native import NativeBuilder
from quintet.config.dialects.piano.schema import (
    AWESOME,
    EXPONENTIAL,
    FULL,
    NEXT_TOKEN,
    PIANO_TASK,
    REPORTED,
    TEST,
    File,
)
from quintet.config.documents import NotesField
from quintet.config.keypath import ABSENT, lookup
from quintet.config.names import local_path
from quintet.config.packing import MusicPackingConfig, TaskPackingConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import HuggingFaceSource, MidiSource, SourceConfig
from quintet.config.tokenizer import ExponentialTimeTokenizerConfig, NoteBPETokenizerConfig

SPLITS = ("train", "validation", "test")
_MIDI = (".mid", ".midi")
_ROWS = (".parquet", ".jsonl", ".json", ".arrow")
_BASE, _EXTRA, _SPLITS = "dataset.base_dataset_name", "dataset.extra_datasets", "eval_splits"
_PAUSES = "dataset.pause_detection_threshold"
_DATA_SETS = (_BASE, _EXTRA, _PAUSES, _SPLITS)
_MUSIC = (
    "stage", "tasks", "data.notes_per_record", _BASE, _EXTRA, _PAUSES, "dataset.augmentation.speed_change_factors",
    "dataset.augmentation.max_pitch_shift", "training.min_notes_per_record", "training.max_notes_per_record",
    "training.min_n_task_notes", "tokenizer.class_name", "tokenizer.config", "tokenizer.base_tokenizer",
    "tokenizer.base_tokenizer_parameters", "tokenizer.parameters", _SPLITS,
)  # fmt: skip
_HELD_OUT = ("validation", "validation_sources")
_SETTINGS = {
    "time_unit": "time_unit",
    "min_time_unit": "time_unit",
    "max_time_step": "max_time_step",
    "n_velocity_bins": "velocity_bins",
    "n_special_ids": "special_tokens",
}
_TRAINED = ("note_bpe", "saved")
_MERGES = {"max_vocab_size": "vocab_size", "max_token_length": "max_token_length"}
_WRITTEN = {
    "time_unit": "time_unit",
    "max_time_step": "max_time_step",
    "velocity_bins": "n_velocity_bins",
    "special_tokens": "n_special_ids",
}
_SAID_OF_BASE = {"kind", *_WRITTEN}


def music(theirs: File, native: NativeBuilder, saved: dict[str, Any] | None) -> None:
    """Data, packing and tokenizer, as far as the section `quintet:` does not say them. ``saved`` is the tokenizer of
    the run that this one starts from."""
    sources = lookup(native.given.native, ("data", "sources"))
    on_text = sources is not ABSENT and not are_music(sources)
    if on_text:
        _unused(native, _MUSIC, "data.sources")
        return
    if sources is ABSENT:
        _data_sets(theirs, native)
    else:
        _unused(native, _DATA_SETS, "data.sources")
    if lookup(native.given.native, ("data", "packing")) is ABSENT:
        _packing(theirs, native)
    else:
        packing = [path for path in _MUSIC if path not in _DATA_SETS and not path.startswith("tokenizer.")]
        _unused(native, packing, "data.packing")
    if lookup(native.given.native, ("tokenizer",)) is ABSENT:
        _tokenizer(theirs, native, saved)
    else:
        _unused(native, native.within("tokenizer"), "tokenizer")


def _unused(native: NativeBuilder, paths: Iterable[str], instead: str) -> None:
    found = [path for path in paths if native.has(path)]
    if found:
        native.say(f"{', '.join(found)}: not used, for quintet.{instead} says it instead")


def _data_sets(theirs: File, native: NativeBuilder) -> None:
    base, extra = theirs.dataset.base_dataset_name, theirs.dataset.extra_datasets
    pauses = theirs.dataset.pause_detection_threshold
    held_out = [name for name in _HELD_OUT if lookup(native.given.native, ("data", name)) is not ABSENT]
    if not extra:
        native.refuse(_EXTRA, "names nothing to train on; give data sets of notes, or quintet.data.sources")
        return
    if "task" in native.given.document.values and base not in extra:
        native.say(
            f"{_BASE}: is validated on; files of before October 2024 meant its split train, too: {_EXTRA} says it"
        )
    for index, name in enumerate(extra):
        if not held_out and name == base and without_splits(name):
            native.refuse(_EXTRA, f"{name} is validated on, too; make folders 'train' and 'validation' in it")
            return
        _source(native, f"data.sources[{index}]", training_source(name, pauses), _EXTRA)
    if held_out:
        _unused(native, (_BASE, _SPLITS), f"data.{held_out[0]}")
        return
    for index, source in enumerate(validation_sources(base, theirs.eval_splits, pauses)):
        _source(native, f"data.validation_sources[{index}]", source, _BASE)
    if FULL in theirs.eval_splits:
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


def _packing(theirs: File, native: NativeBuilder) -> None:
    tasks = theirs.stage != NEXT_TOKEN
    native.set("data.packing.kind", "tasks" if tasks else "pieces", "stage")
    copies, section = theirs.dataset.augmentation, "dataset.augmentation"
    native.set("data.packing.speeds", list(copies.speed_change_factors), f"{section}.speed_change_factors")
    native.set("data.packing.max_pitch_shift", copies.max_pitch_shift, f"{section}.max_pitch_shift")
    if tasks:
        _records(theirs, native)
    elif theirs.tasks:
        native.say(f"tasks: not used, as stage is {NEXT_TOKEN}")


def _records(theirs: File, native: NativeBuilder) -> None:
    """Notes of a record and its tasks."""
    whole, most = "data.notes_per_record", "training.max_notes_per_record"
    notes, training = theirs.data.notes_per_record, theirs.training
    if training.max_notes_per_record is None:
        native.set("data.packing.notes_per_record", notes, whole)
    else:
        if native.has(whole) and notes != training.max_notes_per_record:
            native.refuse(most, f"is not the {notes} of {whole}; keep one of the two")
        native.set("data.packing.notes_per_record", training.max_notes_per_record, most)
    if training.min_notes_per_record is not None:
        fewest = "training.min_notes_per_record"
        native.set("data.packing.min_notes_per_record", training.min_notes_per_record, fewest)
    if training.min_n_task_notes is not None:
        native.set("data.packing.min_task_notes", training.min_n_task_notes, "training.min_n_task_notes")
    native.set("data.packing.tasks", theirs.tasks, "tasks")


def _tokenizer(theirs: File, native: NativeBuilder, saved: dict[str, Any] | None) -> None:
    if saved is not None:
        trained = saved.get("kind") in _TRAINED  # on their data, and ours may be others
        native.set("tokenizer", {"kind": "saved", "path": theirs.init_from} if trained else saved, "init_from")
        said = native.within("tokenizer")
        if said:
            native.say(f"{', '.join(said)}: not used, for the tokenizer is that of {theirs.init_from}")
        return
    awesome = theirs.tokenizer.class_name == AWESOME
    others = ("config",) if awesome else ("base_tokenizer", "base_tokenizer_parameters")
    for path in (f"tokenizer.{name}" for name in others):
        if native.has(path):
            of = "ExponentialTimeTokenizer" if awesome else AWESOME
            native.refuse(path, f"belongs to {of}, and tokenizer.class_name is another; leave it out")
    if not awesome:
        native.set("tokenizer.kind", "exponential_time", "tokenizer.class_name")
        if native.has("tokenizer.config") and native.has("tokenizer.parameters"):
            native.refuse("tokenizer.parameters", "are those of tokenizer.config, in older files; keep one of the two")
        for key in ("config", "parameters"):
            _settings(native, f"tokenizer.{key}", getattr(theirs.tokenizer, key), _SETTINGS, "tokenizer")
        return
    native.set("tokenizer.kind", "note_bpe", "tokenizer.class_name")
    native.set("tokenizer.base.kind", "exponential_time", "tokenizer.base_tokenizer")
    base = theirs.tokenizer.base_tokenizer_parameters
    _settings(native, "tokenizer.base_tokenizer_parameters", base, _SETTINGS, "tokenizer.base")
    _settings(native, "tokenizer.parameters", theirs.tokenizer.parameters, _MERGES, "tokenizer")


def _settings(
    native: NativeBuilder, key: str, values: dict[str, Any] | None, names: dict[str, str], section: str
) -> None:
    """Put each setting in ``values`` of the mapping ``key`` at the native key of its name in ``section``."""
    for name, value in (values or {}).items():
        if name in names:
            native.set(f"{section}.{names[name]}", value, key)
        else:
            native.refuse(key, f"has no setting {name!r}; there are {', '.join(names)}")


def training_source(name: str, pauses: float) -> dict[str, Any]:
    """The source to train on from the data set ``name``."""
    return _data_set(name, "train", {"pauses": pauses})


def validation_sources(name: str, splits: Sequence[str], pauses: float) -> list[dict[str, Any]]:
    """The sources to validate on from the data set ``name``: one for each of ``splits``, labelled with it."""
    found: list[dict[str, Any]] = []
    for label in dict.fromkeys(splits):
        music: dict[str, Any] = {"pauses": pauses} | ({} if label in (FULL, TEST) else {"only_by": [label]})
        found.append(_data_set(name, TEST if label == TEST else "validation", music) | {"label": label})
    return found


def without_splits(name: str) -> bool:
    """True if ``name`` is a folder of MIDI files that are not divided into splits."""
    return _holds_midi(name) and not any((local_path(name) / split).is_dir() for split in SPLITS)


def _data_set(name: str, split: str, music: dict[str, Any]) -> dict[str, Any]:
    if not _holds_midi(name):
        return {"kind": "huggingface", "path": name, "split": split, "document": {"kind": "notes", **music}}
    folder = local_path(name)
    return {"kind": "midi", "path": str(folder if without_splits(name) else folder / split), **music}


def _holds_midi(name: str) -> bool:
    """True if ``name`` is a folder with MIDI files and no rows of a data set."""
    folder = local_path(name)
    if not folder.is_dir():
        return False
    endings = {path.suffix.lower() for path in folder.rglob("*")}
    return not endings.isdisjoint(_MIDI) and endings.isdisjoint(_ROWS)


def music_back(config: RunConfig, put: Put) -> set[str]:
    """Put the keys of the music, and return which native keys of `data`, and whether `tokenizer`, they say."""
    packing = config.data.packing
    if not isinstance(packing, MusicPackingConfig):
        return set()
    put("dataset.augmentation.speed_change_factors", list(packing.speeds))
    put("dataset.augmentation.max_pitch_shift", packing.max_pitch_shift)
    put("stage", PIANO_TASK if isinstance(packing, TaskPackingConfig) else NEXT_TOKEN)
    if isinstance(packing, TaskPackingConfig):
        _records_back(packing, put)
    return {"packing", *_data_sets_back(config, put), *_tokenizer_back(config, put)}


def _records_back(packing: TaskPackingConfig, put: Put) -> None:
    put("tasks", list(packing.tasks))
    put("data.notes_per_record", packing.notes_per_record)
    if packing.min_notes_per_record is not None:
        put("training.min_notes_per_record", packing.min_notes_per_record)
    if packing.min_task_notes is not None:
        put("training.min_n_task_notes", packing.min_task_notes)


def _data_sets_back(config: RunConfig, put: Put) -> set[str]:
    """The data sets by name, where those of piano-gpt would be read in the same way."""
    data = config.data
    names = [_name(source) for source in data.sources]
    base = _name(data.validation_sources[0]) if data.validation_sources else None
    pauses = _pauses(data.sources[0])
    if base is None or pauses is None or not all(names):
        return set()
    splits = [source.label or FULL for source in data.validation_sources]
    trained = [training_source(name, pauses) for name in names if name]
    validated = validation_sources(base, splits, pauses)
    if not (_same(data.sources, trained) and _same(data.validation_sources, validated)):
        return set()
    put("dataset.base_dataset_name", base)
    put("dataset.extra_datasets", names)
    put("dataset.pause_detection_threshold", pauses)
    if tuple(splits) != REPORTED:
        put("eval_splits", splits)
    return {"sources", "validation_sources", "validation"}


def _name(source: SourceConfig) -> str | None:
    """How piano-gpt would name the data set of ``source``: of a folder of MIDI files with splits, the one around it."""
    if isinstance(source, HuggingFaceSource):
        return source.path
    if not isinstance(source, MidiSource) or not isinstance(source.path, str):
        return None
    above, _, last = source.path.rpartition("/")
    return above if above and last in SPLITS else source.path


def _pauses(source: SourceConfig) -> float | None:
    if isinstance(source, MidiSource):
        return source.pauses
    document = getattr(source, "document", None)
    return document.pauses if isinstance(document, NotesField) else None


def _same(sources: tuple[SourceConfig, ...], made: list[dict[str, Any]]) -> bool:
    """True if ``made`` are ``sources``, nothing left out."""
    return len(sources) == len(made) and all(
        type(source).model_validate(one) == source if one["kind"] == source.kind else False
        for source, one in zip(sources, made, strict=True)
    )


def _tokenizer_back(config: RunConfig, put: Put) -> set[str]:
    tokenizer = config.tokenizer
    if isinstance(tokenizer, ExponentialTimeTokenizerConfig):
        if not _expressible(tokenizer):
            return set()
        put("tokenizer.class_name", EXPONENTIAL)
        put("tokenizer.config", _written(tokenizer))
        return {"tokenizer"}
    if isinstance(tokenizer, NoteBPETokenizerConfig) and isinstance(tokenizer.base, ExponentialTimeTokenizerConfig):
        plain = type(tokenizer)(kind="note_bpe").train_tokens
        if tokenizer.train_tokens != plain or not _expressible(tokenizer.base):
            return set()
        put("tokenizer.class_name", AWESOME)
        put("tokenizer.base_tokenizer", EXPONENTIAL)
        put("tokenizer.base_tokenizer_parameters", _written(tokenizer.base))
        merges = {"max_vocab_size": tokenizer.vocab_size, "max_token_length": tokenizer.max_token_length}
        put("tokenizer.parameters", merges)
        return {"tokenizer"}
    return set()


def _expressible(base: ExponentialTimeTokenizerConfig) -> bool:
    """True if piano-gpt's settings say all that ``base`` is."""
    return not set(base.model_dump(exclude_defaults=True)) - _SAID_OF_BASE


def _written(base: ExponentialTimeTokenizerConfig) -> dict[str, Any]:
    return {theirs: getattr(base, name) for name, theirs in _WRITTEN.items()}
