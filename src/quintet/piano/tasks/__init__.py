"""Tasks: a piece is split into a prompt and the target that a model learns to answer it with.

- ``kinds.py`` has the table of kinds (`KINDS`): the tokens, parameters and edit of each. `Task` is a kind with its
  parameter, and splits a piece.
- ``edits.py`` has the edits: masks of the notes that a task hides, and noise on the notes of the prompt.
- ``names.py`` reads tasks by their names in a run file, such as ``top_line_masking-x2``, and has the special tokens of
  all tasks (`SPECIAL_NAMES`).

To add a kind, add an edit if none serves, and an entry to `KINDS`; its name and its tokens follow from the entry.
"""

from quintet.piano.tasks.kinds import KINDS, Task
from quintet.piano.tasks.names import DEFAULT_TASKS, SPECIAL_NAMES, task_named, tasks_from

__all__ = ["DEFAULT_TASKS", "KINDS", "SPECIAL_NAMES", "Task", "task_named", "tasks_from"]
