"""The music of a native run file in the words of piano-gpt, as far as it has words for it."""

from __future__ import annotations

from typing import Any

from quintet.config.dialects.piano.datasets import NoSplit, training_source, validation_sources
from quintet.config.dialects.piano.music_keys import AWESOME, EXPONENTIAL, FULL, NEXT_TOKEN, PIANO_TASK, REPORTED
from quintet.config.dialects.table import Put
from quintet.config.documents import NotesField
from quintet.config.packing import MusicPackingConfig, TaskPackingConfig
from quintet.config.piano import ExponentialTimeTokenizerConfig, NoteBPETokenizerConfig
from quintet.config.schema import RunConfig
from quintet.config.sources import HuggingFaceSource, MidiSource, SourceConfig

_SETTINGS = {
    "time_unit": "time_unit",
    "max_time_step": "max_time_step",
    "velocity_bins": "n_velocity_bins",
    "special_tokens": "n_special_ids",
}
_SAID_OF_BASE = {"kind", *_SETTINGS}


def music_back(config: RunConfig, put: Put) -> set[str]:
    """Put the keys of the music, and return which native keys of `data`, and whether `tokenizer`, they say."""
    packing = config.data.packing
    if not isinstance(packing, MusicPackingConfig):
        return set()
    put("dataset.augmentation.speed_change_factors", list(packing.speeds))
    put("dataset.augmentation.max_pitch_shift", packing.max_pitch_shift)
    put("stage", PIANO_TASK if isinstance(packing, TaskPackingConfig) else NEXT_TOKEN)
    if isinstance(packing, TaskPackingConfig):
        _records(packing, put)
    return {"packing", *_data_sets(config, put), *_tokenizer(config, put)}


def _records(packing: TaskPackingConfig, put: Put) -> None:
    put("tasks", list(packing.tasks))
    put("data.notes_per_record", packing.notes_per_record)
    if packing.min_notes_per_record is not None:
        put("training.min_notes_per_record", packing.min_notes_per_record)
    if packing.min_task_notes is not None:
        put("training.min_n_task_notes", packing.min_task_notes)


def _data_sets(config: RunConfig, put: Put) -> set[str]:
    """The data sets by name, where those of piano-gpt would be read in the same way."""
    data = config.data
    names = [_name(source) for source in data.sources]
    base = _name(data.validation_sources[0]) if data.validation_sources else None
    pauses = _pauses(data.sources[0])
    if base is None or pauses is None or not all(names):
        return set()
    splits = [source.label or FULL for source in data.validation_sources]
    try:
        trained = [training_source(name, pauses) for name in names if name]
        validated = validation_sources(base, splits, pauses)
    except NoSplit:
        return set()
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
    return above if above and last in ("train", "validation", "test") else source.path


def _pauses(source: SourceConfig) -> float | None:
    if isinstance(source, MidiSource):
        return source.pauses
    document = getattr(source, "document", None)
    return document.pauses if isinstance(document, NotesField) else None


def _same(sources: tuple[SourceConfig, ...], made: list[dict[str, Any]]) -> bool:
    """Whether ``made`` are ``sources``, nothing left out."""
    return len(sources) == len(made) and all(
        type(source).model_validate(one) == source if one["kind"] == source.kind else False
        for source, one in zip(sources, made, strict=True)
    )


def _tokenizer(config: RunConfig, put: Put) -> set[str]:
    tokenizer = config.tokenizer
    if isinstance(tokenizer, ExponentialTimeTokenizerConfig):
        if not _expressible(tokenizer):
            return set()
        put("tokenizer.class_name", EXPONENTIAL)
        put("tokenizer.config", _settings(tokenizer))
        return {"tokenizer"}
    if isinstance(tokenizer, NoteBPETokenizerConfig) and isinstance(tokenizer.base, ExponentialTimeTokenizerConfig):
        plain = type(tokenizer)(kind="note_bpe").train_tokens
        if tokenizer.train_tokens != plain or not _expressible(tokenizer.base):
            return set()
        put("tokenizer.class_name", AWESOME)
        put("tokenizer.base_tokenizer", EXPONENTIAL)
        put("tokenizer.base_tokenizer_parameters", _settings(tokenizer.base))
        merges = {"max_vocab_size": tokenizer.vocab_size, "max_token_length": tokenizer.max_token_length}
        put("tokenizer.parameters", merges)
        return {"tokenizer"}
    return set()


def _expressible(base: ExponentialTimeTokenizerConfig) -> bool:
    """Whether piano-gpt's settings say all that ``base`` is."""
    return not set(base.model_dump(exclude_defaults=True)) - _SAID_OF_BASE


def _settings(base: ExponentialTimeTokenizerConfig) -> dict[str, Any]:
    return {theirs: getattr(base, name) for name, theirs in _SETTINGS.items()}
