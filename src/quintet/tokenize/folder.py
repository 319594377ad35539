"""The folder of a saved tokenizer: `quintet.json` says what it is; the kinds put what else they need beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quintet.errors import UserError
from quintet.files import write_text

DESCRIPTION = "quintet.json"
FORMAT = 1


def write_description(folder: Path, kind: str, fingerprint: str, facts: dict[str, Any]) -> None:
    """Write `quintet.json`. Call it last: a folder without it counts as not written."""
    write_text(
        folder / DESCRIPTION,
        json.dumps({"format": FORMAT, "kind": kind, "fingerprint": fingerprint, **facts}, indent=1, ensure_ascii=False),
    )


def read_description(folder: Path) -> dict[str, Any]:
    """What `quintet.json` says. Raises UserError when it is missing or damaged."""
    file = folder / DESCRIPTION
    if not file.is_file():
        raise UserError(
            f"{file}: does not exist, so {folder} holds no tokenizer; name a folder that Quintet wrote one into"
        )
    description = read_json(file)
    if description.get("format") != FORMAT or not isinstance(description.get("fingerprint"), str):
        raise damaged(file, f"it has no fingerprint or not format {FORMAT}")
    return description


def damaged(file: Path, why: str) -> UserError:
    """The error for a file that is not what was written."""
    return UserError(
        f"{file}: is damaged ({why}); restore it from a copy, or delete its folder and let it be made again"
    )


def read_bytes(file: Path) -> bytes:
    """The content of ``file``. Raises UserError when it cannot be read."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); restore it, or delete its folder and let it be made again"
        ) from None


def read_json(file: Path) -> dict[str, Any]:
    """The object in ``file``. Raises UserError when it cannot be read or is no JSON object."""
    try:
        content = json.loads(read_bytes(file))
    except ValueError as error:
        raise damaged(file, f"it is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise damaged(file, "it is no JSON object")
    return content
