"""piano-gpt's names of stages, splits, tasks, tokenizers and data sets, and their native meanings."""

from collections.abc import Sequence
from typing import Annotated, Any

from quintet.config.dialects.types import Listed, one_of
from quintet.config.keypath import is_list, is_mapping
from quintet.config.names import local_path
from quintet.config.section import Value

PIANO_TASK, NEXT_TOKEN = "piano_task", "next_token_pretraining"
SCRATCH = ("scratch_next_token", "scratch")
EXPONENTIAL, AWESOME = "ExponentialTimeTokenizer", "AwesomeMidiTokenizer"
SETTINGS = {
    "time_unit": "time_unit",
    "max_time_step": "max_time_step",
    "n_velocity_bins": "velocity_bins",
    "n_special_ids": "special_tokens",
}
"""The settings of ExponentialTimeTokenizer, with their native keys."""
MERGES = {"max_vocab_size": "vocab_size", "max_token_length": "max_token_length"}
"""The settings of AwesomeMidiTokenizer, with their native keys."""
FULL, TEST = "full_val", "test"
REPORTED = (FULL, "bach", "chopin", "mozart")
"""The splits that piano-gpt validates on by default."""
RUN_NAME = "midi-gpt2"
_COMPOSERS = (
    "bach", "mozart", "chopin", "balakirev", "beethoven", "brahms", "franck", "haydn", "liszt", "mendelssohn",
    "rachmaninoff", "schubert", "schumann", "scriabin",
)  # fmt: skip
_TODO = "TODO"
_FOLDERS = ("train", "validation", "test")
_MIDI = (".mid", ".midi")
_ROWS = (".parquet", ".jsonl", ".json", ".arrow")


def _start(value: Any) -> str:
    """Read init_from. Files for tuning leave it empty."""
    if not isinstance(value, str):
        raise ValueError("must be a word or a path")
    if not value:
        raise ValueError("must name a run or checkpoint; piano-gpt takes it on the command line: init_from=FOLDER")
    return value


def _tasks(value: Any) -> list[str]:
    """Read the names of tasks, which piano-gpt's files write in three ways. They are checked later."""
    if is_mapping(value) and set(value) == {"list"}:
        value = value["list"]
    if value in (None, _TODO):
        return []
    if not is_list(value):
        raise ValueError(f"must be a list of tasks, or {_TODO}")
    return [name for entry in value for name in _task_names(entry)]


def _task_names(entry: Any) -> list[str]:
    """Return the names of the tasks of ``entry``: a class and its parameter, as `TopLineMasking-n_repetitions=2`."""
    if isinstance(entry, str) and entry:
        return [entry]
    name, params, ranged = (entry.get(key) if is_mapping(entry) else None for key in ("class", "params", "param_range"))
    if not isinstance(name, str) or not set(entry) <= {"class", "params", "param_range"}:
        raise ValueError("must have tasks of a name, or of `class` with `params` or `param_range`")
    if params is not None and ranged is not None:
        raise ValueError(f"has params and param_range of {name}, which exclude one another")
    if ranged is not None and (not is_list(ranged) or not ranged):
        raise ValueError(f"must have a list as param_range of {name}")
    return [_task_name(name, parameter) for parameter in ranged or [params or {}]]


def _task_name(name: str, params: Any) -> str:
    if not is_mapping(params) or len(params) > 1 or any(type(value) is not int for value in params.values()):
        raise ValueError(f"must have one parameter of {name} at a time, a whole number")
    return "".join([name, *(f"-{unit}={value}" for unit, value in params.items())])


Start = Annotated[str, Value("`scratch_next_token`, `scratch` or a path", _start)]
Stage = Annotated[
    str,
    one_of(
        by={name: name for name in (PIANO_TASK, NEXT_TOKEN)}
        | {"next_token_prediction": NEXT_TOKEN, "multi": PIANO_TASK, "multi_with_composer": PIANO_TASK}
    ),
]
Masking = Annotated[
    str, one_of(by={"pretraining": "pretraining", "finetuning": "finetuning", "pretrianing": "pretraining"})
]
Splits = Annotated[tuple[Annotated[str, one_of(FULL, TEST, *_COMPOSERS)], ...], Listed]
Tasks = Annotated[
    list[str],
    Value("list of names, or of classes with `params` or `param_range`", _tasks, lambda value: value or _TODO),
]


def training_source(name: str, pauses: float) -> dict[str, Any]:
    """Return the native source to train on from the data set ``name``."""
    return _source(name, "train", {"pauses": pauses})


def validation_sources(name: str, splits: Sequence[str], pauses: float) -> list[dict[str, Any]]:
    """Return the native sources to validate on from the data set ``name``, one for each of ``splits``, its label."""
    sources: list[dict[str, Any]] = []
    for label in dict.fromkeys(splits):
        music: dict[str, Any] = {"pauses": pauses} | ({} if label in (FULL, TEST) else {"only_by": [label]})
        sources.append(_source(name, TEST if label == TEST else "validation", music) | {"label": label})
    return sources


def data_set_name(path: str) -> str:
    """Return the name of the data set with the MIDI files in ``path``: the folder around one of a split's name."""
    above, _, last = path.rpartition("/")
    return above if above and last in _FOLDERS else path


def is_undivided(name: str) -> bool:
    """True if ``name`` is a folder of MIDI files without folders for splits."""
    return _holds_midi(name) and not any((local_path(name) / split).is_dir() for split in _FOLDERS)


def _source(name: str, split: str, music: dict[str, Any]) -> dict[str, Any]:
    if not _holds_midi(name):
        return {"kind": "huggingface", "path": name, "split": split, "document": {"kind": "notes", **music}}
    folder = local_path(name)
    return {"kind": "midi", "path": str(folder if is_undivided(name) else folder / split), **music}


def _holds_midi(name: str) -> bool:
    """True if ``name`` is a folder with MIDI files and no rows of a data set."""
    folder = local_path(name)
    if not folder.is_dir():
        return False
    endings = {path.suffix.lower() for path in folder.rglob("*")}
    return not endings.isdisjoint(_MIDI) and endings.isdisjoint(_ROWS)
