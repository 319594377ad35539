"""Tasks: a piece is split into a prompt and the target that a model learns to answer it with."""

from quintet.piano.tasks.kinds import KINDS, Task
from quintet.piano.tasks.names import DEFAULT_TASKS, SPECIAL_NAMES, task_named, tasks_from

__all__ = ["DEFAULT_TASKS", "KINDS", "SPECIAL_NAMES", "Task", "task_named", "tasks_from"]
