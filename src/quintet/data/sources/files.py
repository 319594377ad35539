"""The files that a path of the run file names, on this disk or at an address."""

import glob
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from quintet.config.names import local_path
from quintet.data.sources.reading import errors_at, file_system, is_remote
from quintet.errors import UserError

PassedOver = dict[str, list[str]]
"""Names in a folder, or that a pattern matches, that are not read, by reason."""

HIDDEN, LINKED, FOLDERS = "hidden", "folders behind links", "folders that a pattern matches (`**` enters them)"
IRREGULAR, OTHERS, EMPTY = "no regular files", "other endings", "empty files"

# The facts by which file systems tell two contents of one name apart.
_STAMPS = ("ETag", "etag", "md5Hash", "contentMd5", "Content-MD5", "crc32c", "generation", "updated", "LastModified")
_TIMES = ("Last-Modified", "last_modified", "mtime", "modified", "created")


@dataclass(frozen=True)
class File:
    """A file of a source; size in bytes, time in nanoseconds.

    ``name`` is its path relative to the folder that the user named. ``named`` is True if the user named the file itself
    (or a pattern for it) and not only its folder. ``stamp`` is what a server says of the content, "" on this disk.
    """

    path: str
    name: str
    named: bool
    size: int
    mtime_ns: int
    stamp: str = ""

    @property
    def facts(self) -> str:
        """The facts that are known without reading the file."""
        return f"{self.name}\n{self.named}\n{self.size}\n{self.mtime_ns}\n{self.stamp}"


def find_files(
    paths: str | tuple[str, ...], suffixes: tuple[str, ...], where: str, passed: PassedOver | None = None
) -> list[File]:
    """Return the files that ``paths`` name, each once, in the order of ``paths`` and sorted by name within a path.

    A path is a file, a folder (all visible files below it whose name ends with one of ``suffixes``, in small letters or
    capitals) or a pattern of `glob`, relative to the working directory, or an address that fsspec knows. Names that are
    not read are added to ``passed``. Raises UserError, with ``where`` as the key at fault, for what does not exist,
    matches nothing or cannot be read.
    """
    files: dict[str, File] = {}
    passed = {} if passed is None else passed
    for path in (paths,) if isinstance(paths, str) else paths:
        for file in sorted(_matching(path, suffixes, where, passed), key=lambda file: file.name):
            files.setdefault(file.path if is_remote(file.path) else os.path.realpath(file.path), file)
    return list(files.values())


def check_path(path: str, suffixes: tuple[str, ...], where: str) -> str | None:
    """Return the problem with ``path``, None if it names at least one file. No file is read, and an address is assumed
    to exist."""
    if is_remote(path):
        return None
    try:
        next(_matching(path, suffixes, where, {}))
    except UserError as error:
        return str(error)
    return None


def missing_paths(paths: tuple[str, ...], where: str) -> list[str]:
    """Return a line for each of ``paths`` with which no name on this disk begins: Megatron's names have no ending."""
    return [
        f"{where}.path: there is no {path} in {Path.cwd()}; correct the path"
        for path in paths
        if not is_pattern(path) and not glob.glob(f"{glob.escape(os.path.expanduser(path))}*")
    ]


def is_pattern(path: str) -> bool:
    """Return True if ``path`` has a sign of `glob`."""
    return any(sign in path for sign in "*?[")


def ends_with(name: str, suffixes: tuple[str, ...]) -> bool:
    """Return True if ``name`` ends with one of ``suffixes``, in small letters or capitals."""
    return name.lower().endswith(suffixes)


def walk(folder: Path, skip: Callable[[str], bool], where: str, passed: PassedOver | None = None) -> Iterator[Path]:
    """Yield the regular files below ``folder``; other names, those that ``skip`` accepts and folders behind links are
    added to ``passed``."""
    passed = {} if passed is None else passed

    def refuse(error: OSError) -> None:
        raise UserError(f"{where}: {error.filename} cannot be listed ({error.strerror}); change its permissions")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        for name in (*folders, *names):
            path = Path(parent, name)
            if skip(name):
                pass_over(passed, HIDDEN, path)
            elif os.path.isdir(path):  # False, unlike Path.is_dir, for a link to what may not be looked at
                if path.is_symlink():
                    pass_over(passed, LINKED, path)
            elif os.path.isfile(path):
                yield path
            else:
                pass_over(passed, IRREGULAR, path)
        folders[:] = [name for name in folders if not skip(name)]


def pass_over(passed: PassedOver, reason: str, path: Path | str) -> None:
    """Add ``path`` to the names that are not read for this ``reason``."""
    passed.setdefault(reason, []).append(shown(str(path)))


def passed_over_lines(label: str, passed: PassedOver) -> Iterator[str]:
    """Yield a line for each reason in ``passed``, with the first names."""
    for reason, names in sorted(passed.items()):
        first = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
        yield f"{label}: passed over {len(names):,} names, {reason}: {first}"


def described(path: Path, name: str, named: bool) -> File:
    """Return ``path`` as a File. Raises FileNotFoundError when it does not exist."""
    facts = os.stat(path)
    return File(str(path), shown(name), named, facts.st_size, facts.st_mtime_ns)


def shown(name: str) -> str:
    """Return a name of the file system as text: UTF-8 whatever the locale, with escapes for other bytes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def files_at(address: str) -> Iterator[File]:
    """Yield the files at an address: one file, those of a folder, or those that match a pattern; maybe none.

    Raises UserError when the address cannot be read.
    """
    system, inner = file_system(address)
    signs = "*" if address.startswith("http") else "*?["  # in a URL, ? and [ mean something else
    with errors_at(address):
        named = not system.isdir(inner)
        if any(sign in inner for sign in signs):
            facts = system.glob(inner, detail=True)
            root = inner[: min(inner.find(sign) for sign in signs if sign in inner)].rpartition("/")[0]
        elif named:
            facts = {inner: system.info(inner)} if system.exists(inner) else {}
            root = inner.rpartition("/")[0]
        else:
            facts, root = system.find(inner, detail=True), inner
    for path, info in facts.items():
        name = path.removeprefix(root).lstrip("/")
        if info["type"] == "file" and (named or not any(part.startswith(".") for part in name.split("/"))):
            if info.get("size") is None:
                raise UserError(f"{address}: the server does not say how large {path} is; copy the file to a disk")
            yield File(system.unstrip_protocol(path), name, named, int(info["size"]), 0, _stamp(info))


def beside(file: File, path: str, name: str) -> list[File]:
    """Return the file at ``path`` beside ``file``, with the ``name``; [] if it does not exist."""
    if is_remote(path):
        system, inner = file_system(path)
        with errors_at(path):
            exists = system.isfile(inner)
        return list(files_at(path)) if exists else []
    return [described(Path(path), name, file.named)] if Path(path).is_file() else []


def _stamp(info: dict[str, Any]) -> str:
    """Return the facts in ``info``, which fsspec gives, that tell two contents of one name apart."""
    stamps = [f"{name}={info[name]}" for name in _STAMPS if info.get(name)]
    return " ".join(stamps or [f"{name}={info[name]}" for name in _TIMES if info.get(name)])


def _matching(path: str, suffixes: tuple[str, ...], where: str, passed: PassedOver) -> Iterator[File]:
    if is_remote(path):
        yield from _at(path, suffixes, where, passed)
        return
    local = local_path(path)
    if local.is_dir():
        yield from _below(local, path, suffixes, where, passed)
    elif local.exists():
        if not stat.S_ISREG(os.stat(local).st_mode):
            raise UserError(f"{where}: {path} is no regular file; name a file or a folder")
        yield described(local, local.name, named=True)
    elif is_pattern(path):
        yield from _globbed(local, path, where, passed)
    else:
        raise UserError(f"{where}: {path} does not exist in {Path.cwd()}; correct the path or make the file")


def _below(folder: Path, path: str, suffixes: tuple[str, ...], where: str, passed: PassedOver) -> Iterator[File]:
    empty = True
    for file in walk(folder, lambda name: name.startswith("."), where, passed):
        if ends_with(file.name, suffixes):
            empty = False
            yield described(file, file.relative_to(folder).as_posix(), named=False)
        else:
            pass_over(passed, OTHERS, file)
    if empty:
        raise UserError(f"{where}: the folder {path} holds no file{_kinds(suffixes)}; name another one")


def _globbed(pattern: Path, path: str, where: str, passed: PassedOver) -> Iterator[File]:
    root = Path(*takewhile(lambda part: not is_pattern(part), pattern.parts))
    empty = True
    for match in glob.iglob(str(pattern), recursive=True):
        if os.path.isfile(match):
            empty = False
            yield described(Path(match), Path(match).relative_to(root).as_posix(), named=True)
        elif "**" not in path:
            pass_over(passed, FOLDERS if os.path.isdir(match) else IRREGULAR, match)
    if empty:
        raise UserError(f"{where}: {path} matches no file in {Path.cwd()}; correct the pattern")


def _at(address: str, suffixes: tuple[str, ...], where: str, passed: PassedOver) -> Iterator[File]:
    empty = True
    for file in files_at(address):
        if file.named or ends_with(file.name, suffixes):
            empty = False
            yield file
        else:
            pass_over(passed, OTHERS, file.path)
    if empty:
        raise UserError(f"{where}: there is no file{_kinds(suffixes)} at {address}; correct the address")


def _kinds(suffixes: tuple[str, ...]) -> str:
    return "".join(f" *{suffix}" for suffix in suffixes[:1] if suffix)
