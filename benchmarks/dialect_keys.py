"""Keys of each dialect: how many there are, work, are tested, have no effect, and are refused.

    python benchmarks/dialect_keys.py

A key works if it changes something. `tests/dialects` has a behaviour test for each, and the suite fails if one is
missing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from quintet.config.dialects import NAMES, dialect_named

COLUMNS = ("documented", "of files", "parsed", "work", "tested", "no effect", "refused")


def main() -> None:
    """Print the table, one line per dialect."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    rows = [(name, *counts(name)) for name in NAMES]
    rows.append(("together", *(sum(row[column] for row in rows) for column in range(1, len(COLUMNS) + 1))))
    print(f"{'dialect':10}", *(f"{column:>11}" for column in COLUMNS))
    for name, *numbers in rows:
        print(f"{name:10}", *(f"{number:11}" for number in numbers))


def counts(name: str) -> tuple[int, ...]:
    """Return the numbers of one row."""
    keys = dialect_named(name).keys
    tested = import_module("tests.dialects.conftest").keys_with_tests(name)
    roles = [key.role for key in keys]
    documented, no_effect = sum(role.documented for role in roles), sum(bool(role.no_effect) for role in roles)
    refused = sum(bool(role.unsupported) for role in roles)
    working = [key for key in keys if not (key.role.unsupported or key.role.no_effect)]
    with_test = sum(key.path in tested for key in working)
    return documented, len(keys) - documented, len(keys), len(working), with_test, no_effect, refused


if __name__ == "__main__":
    main()
