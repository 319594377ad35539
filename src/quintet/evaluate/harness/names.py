"""The names of benchmarks: the harness's own, those of STLM's document, and where a task of a name is defined.

The harness finds its tasks by reading 14,000 files, which takes some fifteen seconds. Here the files are only searched
for names, which takes half a second, and what is asked for is read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from quintet.errors import UserError, nearest
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
"""Names that STLM's document has and the harness has not, and the task that each is."""

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
"""Names that need no search."""

_NAME = re.compile(
    rb"""^["']?(task|group|tag)["']?:[ ]*"""
    rb"""(?:\[([^\]]*)\]|["']?([^\s"'#\[]+)["']?|((?:\r?\n[ ]*-[ ]*["']?[\w./-]+["']?)+))""",
    re.MULTILINE,
)
_WORD = re.compile(rb"[\w./-]{2,}")
_GROUP = re.compile(rb"""^["']?group["']?:""", re.MULTILINE)


def is_short(name: str) -> bool:
    """True for a benchmark for tiny models, of which only the short and plain items count."""
    return name in ALIASES and name.startswith(SHORT)


def items_of(name: str) -> tuple[str, int | None]:
    """The benchmark ``name`` without the number of its items, and that number: ("blimp", 100) for "blimp:100"."""
    task, colon, count = name.rpartition(":")
    return (task, int(count)) if colon and count.isdecimal() and int(count) else (name, None)


def check_tasks(names: Sequence[str], key: str) -> None:
    """Raise UserError, beginning with ``key``, when the harness is missing or knows no task of one of ``names``."""
    if not names:
        return
    check_installed("lm_eval", extra="eval", what=f"{key}: a benchmark", otherwise="leave it out")
    doubled = sorted({name for name in names if names.count(name) > 1})
    problems = [f"{key}: {name} stands there twice; leave one out" for name in doubled]
    asked = [items_of(name)[0] for name in names]
    if any(name not in KNOWN for name in asked):
        known = {*KNOWN, *task_files()}
        for name in asked:
            if name not in known:
                meant = nearest(name, [one for one in known if abs(len(one) - len(name)) <= 4])
                hint = f"; did you mean {meant}?" if meant else "; `lm_eval ls tasks` lists them"
                problems.append(f"{key}: there is no benchmark {name!r}{hint}")
    if problems:
        raise UserError(*problems)


def harness_folder() -> Path:
    """The folder with the harness's task files."""
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


@lru_cache(maxsize=1)
def task_files() -> dict[str, list[Path]]:
    """Names of tasks, groups and tags, and the files in the harness that define something of this name."""
    found = dict[str, list[Path]]()
    for file in sorted(harness_folder().glob("**/*yaml"), key=lambda path: path.as_posix()):
        for kind, listed, single, lines in _NAME.findall(file.read_bytes()):
            names = [single] if single else _WORD.findall(listed or lines)
            for name in names if single or kind == b"tag" else ():  # a list of tasks names those of a group
                found.setdefault(name.decode(), []).append(file)
    return found


def folders_of(name: str) -> list[Path]:
    """The folders in the harness with all that ``name`` stands for: a group's tasks may lie elsewhere."""
    root = harness_folder()
    if _defines(OWN, name):
        return []
    if name in KNOWN:  # lies, with all its tasks, in a folder of its name or of the beginning of its name
        parts = name.split("_")
        likely = [root / "_".join(parts[:size]) for size in range(len(parts), 0, -1)]
        if own := [folder for folder in likely if folder.is_dir() and _defines(folder, name)][:1]:
            return own
    known, found, pending = task_files(), dict[Path, None](), [name]
    seen = {name}
    while pending:
        for file in known.get(pending.pop(), ()):
            found[root / file.relative_to(root).parts[0]] = None
            # Of a group's file every word may be one of its members; a word too many costs the reading of a folder.
            text = file.read_bytes()
            words = {word.decode() for word in _WORD.findall(text)} if _GROUP.search(text) else set()
            pending += [word for word in words & known.keys() if word not in seen]
            seen |= words
    return list(found)


def _defines(folder: Path, name: str) -> bool:
    pattern = re.compile(rf"""^(task|group|tag)["']?:.*\b{re.escape(name)}\b""".encode(), re.MULTILINE)
    return any(pattern.search(file.read_bytes()) for file in folder.glob("**/*yaml"))
