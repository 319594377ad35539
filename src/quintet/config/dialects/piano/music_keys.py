"""The keys of piano-gpt that are about the music itself: data sets, records, tasks, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quintet.config.dialects.table import Key
from quintet.config.dialects.values import Value, choice, listed, mapping, number, text, whole

PIANO_TASK, NEXT_TOKEN = "piano_task", "next_token_pretraining"
EXPONENTIAL, AWESOME = "ExponentialTimeTokenizer", "AwesomeMidiTokenizer"
FULL, TEST = "full_val", "test"
COMPOSERS = (
    "bach", "mozart", "chopin", "balakirev", "beethoven", "brahms", "franck", "haydn", "liszt", "mendelssohn",
    "rachmaninoff", "schubert", "schumann", "scriabin",
)  # fmt: skip
REPORTED = (FULL, "bach", "chopin", "mozart")
"""What piano-gpt's validation reports."""

_PACKING = ("data.packing",)
_SOURCES = ("data.sources", "data.validation_sources")
_TOKENIZER = ("tokenizer",)
_TODO = "TODO"


def also(value: Value, spellings: Mapping[str, str]) -> Value:
    """``value``, which takes other ``spellings`` of its words, too."""
    return replace(value, read=lambda found: value.read(spellings.get(found, found) if _is_word(found) else found))


def _is_word(found: Any) -> bool:
    return isinstance(found, str)


def above_zero() -> Value:
    """Numbers above 0."""

    def read(value: Any) -> float:
        found = number().read(value)
        if found <= 0:
            raise ValueError("must be above 0")
        return found

    return Value("number above 0", read)


def task_list() -> Value:
    """Tasks by name: what piano-gpt's files write in three ways. An entry with ``param_range`` is several tasks, and
    `TODO` is none. Which names there are is not known here."""

    def read(value: Any) -> list[str]:
        if isinstance(value, dict) and set(value) == {"list"}:
            value = value["list"]
        if value in (None, _TODO):
            return []
        if not isinstance(value, list):
            raise ValueError(f"must be a list of tasks, or {_TODO}")
        return [name for entry in value for name in _names(entry)]

    return Value("list of names, or of classes with `params` or `param_range`", read, lambda value: value or _TODO)


def _names(entry: Any) -> list[str]:
    """The names of an entry: the class with each of its parameters behind it, as `TopLineMasking-n_repetitions=2`."""
    if isinstance(entry, str) and entry:
        return [entry]
    if not isinstance(entry, dict) or not set(entry) <= {"class", "params", "param_range"}:
        raise ValueError("must have tasks of a name, or of `class` with `params` or `param_range`")
    name, params, ranged = (entry.get(key) for key in ("class", "params", "param_range"))
    if not isinstance(name, str):
        raise ValueError("must have tasks of a name, or of `class` with `params` or `param_range`")
    if params is not None and ranged is not None:
        raise ValueError(f"has params and param_range of {name}, which exclude one another")
    if ranged is not None and (not isinstance(ranged, list) or not ranged):
        raise ValueError(f"must have a list as param_range of {name}")
    return [_with(name, one) for one in ranged or [params or {}]]


def _with(name: str, params: Any) -> str:
    if not isinstance(params, dict) or len(params) > 1 or any(type(value) is not int for value in params.values()):
        raise ValueError(f"must have one parameter of {name} at a time, a whole number")
    return "".join([name, *(f"-{unit}={value}" for unit, value in params.items())])


STAGE = (
    Key(
        "stage",
        also(choice(PIANO_TASK, NEXT_TOKEN), {"next_token_prediction": NEXT_TOKEN}),
        "what is learnt: tasks on records of notes, or the next token of pieces",
        affects=_PACKING,
        default=PIANO_TASK,
        aliases=("model_task",),
    ),
)

TASKS = (
    Key(
        "tasks",
        task_list(),
        f"tasks of `{PIANO_TASK}`: names, or classes with `params` or `param_range`; `{_TODO}`: the twelve that "
        "piano-gpt was trained on",
        affects=_PACKING,
        default=[],
    ),
)

MUSIC = (
    Key(
        "data.notes_per_record",
        whole(2),
        f"notes of a record, prompt and answer together; `{NEXT_TOKEN}` has none",
        affects=_PACKING,
        default=128,
        aliases=("training.notes_per_record",),
    ),
    Key(
        "dataset.base_dataset_name",
        text(),
        "data set to validate on, its split `validation`; `test` is read where `eval_splits` names it: a name on "
        "the hub, or a folder of a data set or of MIDI files",
        affects=("data.validation_sources",),
        default="epr-labs/maestro-sustain-v2",
    ),
    Key(
        "dataset.extra_datasets",
        listed(text()),
        "data sets to train on, the split `train` of each; must be given for music",
        affects=("data.sources",),
    ),
    Key(
        "dataset.pause_detection_threshold",
        above_zero(),
        "a piece is cut where nothing sounds for longer than so many seconds",
        affects=_SOURCES,
        default=4.0,
    ),
    Key(
        "dataset.augmentation.speed_change_factors",
        listed(above_zero(), single=True),
        "each sample is also trained on so many times as fast",
        affects=_PACKING,
        default=[],
    ),
    Key(
        "dataset.augmentation.max_pitch_shift",
        whole(0),
        "each sample is also trained on up to so many semitones lower and higher",
        affects=_PACKING,
        default=0,
    ),
    Key(
        "training.min_notes_per_record",
        whole(2),
        "fewest notes of a record; how many one has is drawn",
        documented=False,
        affects=_PACKING,
    ),
    Key(
        "training.max_notes_per_record",
        whole(2),
        "most notes of a record, where they are drawn; the same as `data.notes_per_record` where they are not",
        documented=False,
        affects=_PACKING,
    ),
    Key(
        "training.min_n_task_notes",
        whole(1),
        "fewest notes of the part of a record that a task splits; the part is drawn",
        documented=False,
        affects=_PACKING,
    ),
    Key(
        "tokenizer.class_name",
        choice(EXPONENTIAL, AWESOME),
        "class of the tokenizer, ExponentialTimeTokenizer when not given; from a run comes its tokenizer",
        documented=False,
        affects=_TOKENIZER,
        aliases=("tokenizer.name",),
    ),
    Key(
        "tokenizer.config",
        mapping(),
        "settings of ExponentialTimeTokenizer: `time_unit`, `max_time_step`, `n_velocity_bins`, `n_special_ids`",
        documented=False,
        affects=_TOKENIZER,
    ),
    Key(
        "tokenizer.base_tokenizer",
        choice(EXPONENTIAL),
        "whose ids AwesomeMidiTokenizer merges",
        documented=False,
        affects=_TOKENIZER,
    ),
    Key(
        "tokenizer.base_tokenizer_parameters",
        mapping(),
        "settings of that tokenizer, as in `config`; `min_time_unit` is `time_unit`",
        documented=False,
        affects=_TOKENIZER,
    ),
    Key(
        "tokenizer.parameters",
        mapping(),
        "settings of AwesomeMidiTokenizer: `max_vocab_size`, `max_token_length`",
        documented=False,
        affects=_TOKENIZER,
    ),
)

_BY_COMMAND = "`quintet evaluate RUN --records 30 --temperature 1` generates and measures; leave it out"

EVALUATION = (
    Key(
        "eval_splits",
        listed(choice(FULL, TEST, *COMPOSERS), single=True),
        f"what is validated on: `{FULL}` is the split `validation`, `{TEST}` the split `test`, a composer the pieces "
        "of that surname in `validation`. The best checkpoint is that of `full_val`",
        documented=False,
        affects=("data.validation_sources", "evaluate.best_by"),
        default=list(REPORTED),
    ),
    Key("temperature", number(0), "temperature of what an evaluation generates", documented=False, refused=_BY_COMMAND),
    Key(
        "n_eval_samples",
        whole(1),
        "pieces that an evaluation generates",
        documented=False,
        refused=_BY_COMMAND,
    ),
)
