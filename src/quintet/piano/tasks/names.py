"""Tasks by their names in run files and in files of piano-gpt, and the names of their special tokens."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from quintet.config.keypath import is_mapping, is_sequence
from quintet.errors import UserError, did_you_mean, nearest
from quintet.piano.context import ANSWER, COMPOSERS, DATASETS, END_OF_ANSWER
from quintet.piano.tasks.kinds import KINDS, Task, parameter_token

_NAME = re.compile(r"(?P<kind>.+?)(-(?:x(?P<value>\d+)(?P<percent>%?)|(?P<unit>[a-z_]+)=(?P<of>\d+)))?")
_SUFFIXES = ("", "_masking", "_prediction", "_task", "_denoising")
_OTHER_NAMES = {
    "stride_masking": "stride_notes_masking",
    "stride": "stride_notes_masking",
    "chords": "chord_masking",
    "chords_masking": "chord_masking",
    "bottom_line_prediction": "low_line_prediction",
    "middle_quartile_prediction": "middle_quartiles_prediction",
    "extreme_quartile_prediction": "extreme_quartiles_prediction",
}
_CLASSES = {"".join(word.title() for word in kind.split("_")): kind for kind in KINDS}
_CLASSES["StrideMasking"] = _CLASSES.pop("StrideNotesMasking")


def task_named(name: str, where: str = "task") -> Task:
    """Return the task of a name such as ``top_line_masking-x2``, ``high_notes_masking-x20%`` or ``loud_prediction``.

    Endings (`_masking`, `_prediction`, `_task`) are optional, and so is the parameter, which then has its default. A
    number without a sign is a count if the kind takes a count and a percentage; ``-mask_percentage=20`` names the
    parameter. Names of piano_dataset's classes are accepted too. Raises UserError, whose message starts with ``where``,
    for an unknown name or an impossible parameter.
    """
    match = _NAME.fullmatch(name.strip())
    kind = _kind(match["kind"] if match else name, where)
    if match is None or (match["value"] or match["of"]) is None:
        return _task(kind, {}, where)
    if match["unit"]:
        return _task(kind, {match["unit"]: int(match["of"])}, where)
    unit = "mask_percentage" if match["percent"] else next(iter(KINDS[kind].units), "")
    return _task(kind, {unit: int(match["value"])}, where)


def tasks_from(entries: Iterable[str | Mapping[str, Any]], where: str = "tasks") -> tuple[Task, ...]:
    """Return the tasks of a list in a run file, in its order, each once.

    An entry is a name or, as in piano-gpt's files, ``{class: TopLineMasking, params: {n_repetitions: 2}}`` or one with
    a list of parameters, ``param_range``. Raises UserError if two different tasks have the same tokens, such as a count
    and a percentage of one kind.
    """
    tasks: dict[Task, None] = {}
    for index, entry in enumerate(entries):
        here = f"{where}[{index}]"
        named = [task_named(entry, here)] if isinstance(entry, str) else _tasks_of_class(entry, here)
        tasks.update(dict.fromkeys(named))
    _check_distinct(list(tasks), where)
    return tuple(tasks)


def _tasks_of_class(entry: object, where: str) -> list[Task]:
    allowed = ("class", "params", "param_range")
    if not is_mapping(entry) or not isinstance(entry.get("class"), str) or not set(entry) <= {*allowed}:
        raise UserError(f"{where}: a task is a name or has the keys class and params or param_range, not {entry!r}")
    if entry.get("params") is not None and "param_range" in entry:
        raise UserError(f"{where}: params and param_range exclude one another; keep one")
    kind = _kind(entry["class"], where)
    ranged = entry.get("param_range")
    if ranged is None:
        return [_task(kind, entry.get("params") or {}, f"{where}.params")]
    if not is_sequence(ranged) or not ranged:
        raise UserError(f"{where}.param_range: a list of parameters is needed, not {ranged!r}")
    return [_task(kind, params, f"{where}.param_range[{index}]") for index, params in enumerate(ranged)]


def _kind(name: str, where: str) -> str:
    plain = name.strip()
    if plain.removeprefix("Parametric") in _CLASSES:
        return _CLASSES[plain.removeprefix("Parametric")]
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", plain).lower().removeprefix("parametric_")
    for suffix in _SUFFIXES:
        kind = _OTHER_NAMES.get(snake + suffix, snake + suffix)
        if kind in KINDS:
            return kind
    known = _CLASSES if any(letter.isupper() for letter in plain) else KINDS
    hint = did_you_mean(nearest(plain, known)) or f"; there are {', '.join(KINDS)}"
    raise UserError(f"{where}: no task is called {name!r}{hint}")


def _task(kind: str, params: Any, where: str) -> Task:
    units = KINDS[kind].units
    accepted = " or ".join(units) or "no parameter"
    if not is_mapping(params) or len(params) > 1 or not set(params) <= set(units):
        given = ", ".join(map(str, params)) if is_mapping(params) else repr(params)
        raise UserError(
            f"{where}: {kind} has {accepted}{', one of them' if len(units) > 1 else ''}; not {given or 'that'}"
        )
    if not units:
        return Task(kind)
    unit, value = next(iter(params.items() or units.items()))
    most = 100 if unit == "mask_percentage" else None
    if type(value) is not int or value < 1 or (most is not None and value > most):
        bounds = "a whole number from 1 to 100" if most else "a whole number from 1 on"
        raise UserError(f"{where}: {unit} of {kind} is {bounds}, not {value!r}")
    return Task(kind, unit, value)


def _check_distinct(tasks: list[Task], where: str) -> None:
    by_tokens: dict[tuple[str, ...], Task] = {}
    for task in tasks:
        other = by_tokens.setdefault(task.tokens, task)
        if other.unit != task.unit:
            raise UserError(
                f"{where}: {other.name} and {task.name} have the same tokens, so that a model cannot tell them apart; "
                "use counts or percentages, not both"
            )


DEFAULT_TASKS = tasks_from(
    [
        *(f"top_line_masking-x{lines}" for lines in (1, 2, 3)),
        *(f"high_notes_masking-x{count}" for count in (5, 10, 20, 30)),
        *(f"short_notes_masking-x{count}" for count in (10, 20)),
        *(f"stride_notes_masking-x{length}" for length in (2, 5, 20)),
    ]
)
"""The 12 tasks of piano_dataset 6a4d953, on which piano-gpt was trained when its document was written."""

_LARGEST_PARAMETER = 128
SPECIAL_NAMES = (
    *DATASETS,
    *COMPOSERS,
    *sorted({token for kind in KINDS.values() for token in kind.tokens}),
    *map(parameter_token, range(1, _LARGEST_PARAMETER + 1)),
    ANSWER,
    END_OF_ANSWER,
)
"""The special names of piano music, in the order of their ids in a new tokenizer: data sets and composers in the order
of piano-gpt, the tokens of all kinds of task in alphabetical order, parameters, and the two around an answer.

Every tokenizer of a music run gets all of them, whatever the tasks of the run, so that its model can be tuned on other
tasks. A kind of task that is added to Quintet later changes the order in new tokenizers only: a saved tokenizer keeps
the ids of its names, and `with_special` puts new names after them.
"""
