"""The names of benchmarks, of the harness and of STLM's document, and the folders in which they are defined.

The harness finds its tasks by reading 14,000 files, which takes about fifteen seconds. Here the files are only searched
for names, which takes half a second, and only the definitions of the wanted benchmarks are read.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from quintet.errors import UserError, did_you_mean, nearest
from quintet.libraries import check_installed

OWN = Path(__file__).parent / "task_files"
SHORT = "stlm_eval_"
ALIASES = {
    "truthful_qa": "truthfulqa_mc1",
    "race_high": "race",
    "openbook_qa_closed": "openbookqa",
    **{f"{SHORT}{name}": name for name in ("arc_easy", "hellaswag", "winogrande")},
    f"{SHORT}truthful_qa": "truthfulqa_mc1",
}
"""Names in STLM's document that the harness does not have, and the harness's task for each."""

_OFTEN = ("winogrande", "hellaswag", "arc_easy", "arc_challenge", "mmlu", "blimp", "truthfulqa_mc1", "piqa", "race")
KNOWN = frozenset(
    (
        *_OFTEN,
        *ALIASES,
        "boolq",
        "openbookqa",
        "copa",
        "commonsense_qa",
        "sciq",
        "social_iqa",
        "glue",
        *(file.stem for file in OWN.glob("*.yaml")),
    )
)
"""Names that are known without searching the files."""

_NAME = re.compile(
    rb"""^["']?(task|group|tag)["']?:[ ]*"""
    rb"""(?:\[([^\]]*)\]|["']?([^\s"'#\[]+)["']?|((?:\r?\n[ ]*-[ ]*["']?[\w./-]+["']?)+))""",
    re.MULTILINE,
)
_WORD = re.compile(rb"[\w./-]{2,}")
_GROUP = re.compile(rb"""^["']?group["']?:""", re.MULTILINE)


def is_short(name: str) -> bool:
    """Return True for a benchmark for tiny models, which has only the short and plain items of a task."""
    return name in ALIASES and name.startswith(SHORT)


def items_of(name: str) -> tuple[str, int | None]:
    """Split ``name`` into the benchmark and the number of its items: ("blimp", 100) for "blimp:100"."""
    task, colon, count = name.rpartition(":")
    return (task, int(count)) if colon and count.isdecimal() and int(count) else (name, None)


def check_tasks(names: Sequence[str], key: str) -> None:
    """Raise UserError, which begins with ``key``, if the harness does not have one of ``names``; NotHere if it is not
    installed."""
    if not names:
        return
    check_installed("lm_eval", extra="eval", what=f"{key}: a benchmark", otherwise="leave it out")
    repeated = sorted({name for name in names if names.count(name) > 1})
    problems = [f"{key}: {name} is listed twice; remove one" for name in repeated]
    tasks = [items_of(name)[0] for name in names]
    if any(task not in KNOWN for task in tasks):
        known = {*KNOWN, *task_files()}
        for name in tasks:
            if name not in known:
                close = nearest(name, [other for other in known if abs(len(other) - len(name)) <= 4])
                hint = did_you_mean(close, quoted=False) or "; `lm_eval ls tasks` lists them"
                problems.append(f"{key}: there is no benchmark {name!r}{hint}")
    if problems:
        raise UserError(*problems)


def harness_folder() -> Path:
    """Return the folder with the harness's task files."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


@lru_cache(maxsize=1)
def task_files() -> dict[str, list[Path]]:
    """Return the names of tasks, groups and tags, each with the harness's files that define something of this name."""
    found = dict[str, list[Path]]()
    for file in sorted(harness_folder().glob("**/*yaml"), key=lambda path: path.as_posix()):
        for kind, listed, single, lines in _NAME.findall(file.read_bytes()):
            names = [single] if single else _WORD.findall(listed or lines)
            for name in names if single or kind == b"tag" else ():  # a list of tasks names those of a group
                found.setdefault(name.decode(), []).append(file)
    return found


def folders_of(name: str) -> list[Path]:
    """Return the harness's folders with ``name`` and all its tasks; those of a group may be in other folders."""
    root = harness_folder()
    if _defines(OWN, name):
        return []
    if name in KNOWN:  # its folder has its name, or the beginning of its name, and holds all its tasks
        parts = name.split("_")
        likely = [root / "_".join(parts[:size]) for size in range(len(parts), 0, -1)]
        if own := [folder for folder in likely if folder.is_dir() and _defines(folder, name)][:1]:
            return own
    files = task_files()
    folders: dict[Path, None] = {}
    pending, seen = [name], {name}
    while pending:
        for file in files.get(pending.pop(), ()):
            folders[root / file.relative_to(root).parts[0]] = None
            # Each word in the file of a group may name a member; a wrong guess costs reading one more folder.
            text = file.read_bytes()
            words = {word.decode() for word in _WORD.findall(text)} if _GROUP.search(text) else set[str]()
            pending += [word for word in words & files.keys() if word not in seen]
            seen |= words
    return list(folders)


def _defines(folder: Path, name: str) -> bool:
    pattern = re.compile(rf"""^(task|group|tag)["']?:.*\b{re.escape(name)}\b""".encode(), re.MULTILINE)
    return any(pattern.search(file.read_bytes()) for file in folder.glob("**/*yaml"))
