"""Tasks: a piece is split into a prompt and a target, which the model learns to give for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quintet.piano.context import ANSWER, COMPOSERS, DATASETS, END_OF_ANSWER
from quintet.piano.tasks.base import Task, parameter_token
from quintet.piano.tasks.kinds import KINDS
from quintet.piano.tasks.names import task_named, tasks_from

__all__ = ["DEFAULT_TASKS", "KINDS", "OLDER_TASKS", "PERCENTAGE_TASKS", "Task"]
__all__ += ["parameter_token", "special_tokens", "task_named", "tasks_from"]

DEFAULT_TASKS = tasks_from(
    [
        *(f"top_line_masking-x{lines}" for lines in (1, 2, 3)),
        *(f"high_notes_masking-x{count}" for count in (5, 10, 20, 30)),
        *(f"short_notes_masking-x{count}" for count in (10, 20)),
        *(f"stride_notes_masking-x{length}" for length in (2, 5, 20)),
    ]
)
"""The 12 tasks of piano_dataset 6a4d953, on which piano-gpt was trained when its document was written."""

PERCENTAGE_TASKS = tasks_from(
    [
        *(f"bottom_line_masking-x{lines}" for lines in (1, 2, 5)),
        *(f"top_line_masking-x{lines}" for lines in (1, 2, 3)),
        *(
            f"{kind}_masking-x{percentage}%"
            for kind in (
                "low_notes",
                "high_notes",
                "short_notes",
                "long_notes",
                "random",
                "linear_random",
                "band_random",
            )
            for percentage in range(5, 101, 5)
        ),
    ]
)
"""The 146 tasks of piano_dataset from f482a59 (January 2026) on."""

OLDER_TASKS = tuple(Task(kind) for kind in KINDS if not KINDS[kind].units)
"""The tasks with a source and a target token, which piano-gpt had before."""


def special_tokens(tasks: Iterable[Task], known: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of all special tokens, in the order in which they take ids, each once.

    Collections, composers, tokens of tasks by the alphabet, parameters by their number, `<GENAI>`, `<EOGENAI>`: the
    order of ``tasks`` does not count. ``known`` are those that a model has already, which keep their places at the
    beginning, so that a model can be tuned on further tasks.
    """
    tasks = list(tasks)
    parameters = {task.value for task in tasks if KINDS[task.kind].tells}
    kinds = {token for task in tasks for token in KINDS[task.kind].tokens}
    wanted = (*DATASETS, *COMPOSERS, *sorted(kinds), *map(parameter_token, sorted(parameters)), ANSWER, END_OF_ANSWER)
    return tuple(dict.fromkeys((*known, *wanted)))
