"""Files of object stores and servers, by fsspec; imported only for a path that has a scheme."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from quintet.errors import UserError, one_line
from quintet.libraries import require

# What tells two contents of one name apart, under the names that file systems give to it.
_STAMPS = ("ETag", "etag", "md5Hash", "contentMd5", "Content-MD5", "crc32c", "generation", "updated", "LastModified")
_TIMES = ("Last-Modified", "last_modified", "mtime", "modified", "created")


def is_remote(path: str) -> bool:
    """Whether ``path`` begins with a scheme, such as s3://."""
    return "://" in path


def found(path: str) -> Iterator[tuple[str, str, bool, int, str]]:
    """Path, name, whether it was named itself, size in bytes and a stamp of every file that ``path`` stands for.

    ``path`` is a file, a folder or a pattern. Raises UserError when it cannot be looked at; nothing is found where
    nothing is.
    """
    system, inner = _system(path)
    with _named(path):
        named = not system.isdir(inner)
        if any(sign in inner for sign in _pattern_signs(path)):
            facts = system.glob(inner, detail=True)
            root = inner[: min(inner.find(sign) for sign in _pattern_signs(path) if sign in inner)].rpartition("/")[0]
        elif named:
            facts = {inner: system.info(inner)} if system.exists(inner) else {}
            root = inner.rpartition("/")[0]
        else:
            facts, root = system.find(inner, detail=True), inner
    for place, info in facts.items():
        name = place.removeprefix(root).lstrip("/")
        if info["type"] == "file" and (named or not any(part.startswith(".") for part in name.split("/"))):
            if info.get("size") is None:
                raise UserError(f"{path}: the server does not say how large {place} is; copy the file to a disk")
            yield system.unstrip_protocol(place), name, named, int(info["size"]), _stamp(info)


def exists(path: str) -> bool:
    """Whether there is such a file."""
    system, inner = _system(path)
    with _named(path):
        return bool(system.isfile(inner))


def opened(path: str) -> BinaryIO:
    """The file at ``path``, to read bytes. Raises UserError when that cannot be."""
    system, inner = _system(path)
    with _named(path):
        return system.open(inner, "rb")


def read_range(path: str, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` of a file, fewer where it ends before. Raises UserError when they cannot be read."""
    system, inner = _system(path)
    with _named(path):
        return system.cat_file(inner, start=start, end=stop)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Whatever goes wrong inside is about ``path``: each file system has errors of its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}); check the address, the network and what you may read"
        ) from error


def _system(path: str) -> tuple[Any, str]:
    """The file system of ``path``, which keeps its connections, and how that names the file."""
    scheme = path.partition("://")[0]
    fsspec = require("fsspec", "remote", f"{path}: an address")
    try:
        system = fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        raise UserError(f"{path}: {error}; install what it names, or use another address") from None
    return system, system._strip_protocol(path)


def _stamp(info: dict[str, Any]) -> str:
    stamps = [f"{name}={info[name]}" for name in _STAMPS if info.get(name)]
    return " ".join(stamps or [f"{name}={info[name]}" for name in _TIMES if info.get(name)])


def _pattern_signs(path: str) -> str:
    """The characters that make ``path`` a pattern; in an address of the web, ? and [ are something else."""
    return "*" if path.startswith("http") else "*?["
