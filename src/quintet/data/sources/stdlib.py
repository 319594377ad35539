"""Python's standard library as a corpus."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from quintet.data.sources.files import File, described, walk

# Folders that are no part of the library: installed packages, and the tests. Of CPython 3.11, tests are 19 of 31 MB.
# Many systems package them apart, so that with them the corpus would differ from machine to machine; and much of them
# is generated tables, deliberately broken encodings and Python 2, nothing to learn from.
_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


def library_folder() -> Path:
    """Where the modules of the running Python lie."""
    return Path(sysconfig.get_paths()["stdlib"])


def python_files() -> list[File]:
    """The library's modules, sorted by name. The build's own configuration is left out: it is about this machine."""
    folder = library_folder()

    def skip(name: str) -> bool:
        return name in _LEFT_OUT or name.startswith((".", "_sysconfigdata"))

    files = (file for file in walk(folder, skip, "python_stdlib") if file.suffix == ".py")
    found = [described(file, file.relative_to(folder).as_posix(), named=False) for file in files]
    return sorted(found, key=lambda file: file.name)
