"""The names under which SuperTinyLanguageModels (STLM) knows datasets, and where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quintet.config.names import local_path
from quintet.config.sources import HuggingFaceSource, JsonlSource, ParquetSource, SourceConfig, TextSource
from quintet.errors import nearest

# Name: dataset on the hub, its configuration, the column with the text.
REGISTRY: dict[str, tuple[str, str | None, str]] = {
    "simple_en_wiki": ("wikimedia/wikipedia", "20231101.simple", "text"),
    "en_wiki": ("wikimedia/wikipedia", "20231101.en", "text"),
    "babylm_100m": ("Sree1994/babylm_100M", None, "text"),
    "tinystories": ("roneneldan/TinyStories", None, "text"),
    "openwebtext": ("Skylion007/openwebtext", None, "text"),
    "pints": ("pints-ai/Expository-Prose-V1", None, "text"),
    "tiny_textbooks": ("nampdn-ai/tiny-textbooks", None, "text"),
    "tiny_webtext": ("nampdn-ai/tiny-webtext", None, "text"),
    "tiny_bridgedict": ("nampdn-ai/tiny-bridgedict", None, "text"),
    "mini_fineweb": ("nampdn-ai/mini-fineweb", None, "text"),
    "tiny_lessons": ("nampdn-ai/tiny-lessons", None, "textbook"),
    "github-code": ("codeparrot/github-code", None, "code"),
    "textbooks_are_all_you_need_lite": ("SciPhi/textbooks-are-all-you-need-lite", None, "completion"),
    "openphi_textbooks": ("open-phi/textbooks", None, "markdown"),
    "openphi_programming_books": ("open-phi/programming_books_llama", None, "markdown"),
    "fineweb_edu_10B": ("HuggingFaceFW/fineweb-edu", "sample-10BT", "text"),
    "fineweb_edu_100B": ("HuggingFaceFW/fineweb-edu", "sample-100BT", "text"),
}

_JOINED = "makes its text of several columns; write the texts to a .jsonl file once and give its path"
UNREADABLE: dict[str, str] = {
    **dict.fromkeys(
        (
            "openhermes-2.5",
            "competition_math",
            "super_natural_instructions",
            "tiny_codes",
            "tiny_orca_textbooks",
            "mini_cot",
            "mini_ultrachat",
            "natural_instructions",
            "MATH",
        ),
        _JOINED,
    ),
    "the_pile": "has a name that the hub does not know; give the path of a copy",
    "prm800k": "is a set of rated steps and no text; give the path of a file of texts",
    "stlm": "is a mix that the document does not describe; list its parts: dataset: [simple_en_wiki, tinystories]",
    "debug": "is a part of another dataset; give the path of a file of texts",
}

_ENDINGS = {
    ".jsonl": "jsonl",
    ".parquet": "parquet",
    **dict.fromkeys((".txt", ".text", ".md", ".py"), "text"),
}


def source_of(name: str) -> dict[str, Any]:
    """The native source of the dataset ``name``: of the registry, a path on this disk, or OWNER/NAME on the hub.

    Raises ValueError when it is none of these.
    """
    if name in REGISTRY:
        path, part, field = REGISTRY[name]
        source: dict[str, Any] = {"kind": "huggingface", "path": path, "label": name}
        return source | ({"name": part} if part else {}) | ({} if field == "text" else {"document": {"field": field}})
    if name in UNREADABLE:
        raise ValueError(f"{name!r} {UNREADABLE[name]}")
    path = local_path(name)
    if name.startswith((".", "/", "~")) or "://" in name or _ending(name) or path.exists():
        return {"kind": _kind(path), "path": name}
    if name.count("/") == 1:
        return {"kind": "huggingface", "path": name}
    like = nearest(name, [*REGISTRY, *UNREADABLE])
    meant = f"did you mean {like!r}? Else " if like else ""
    raise ValueError(
        f"{name!r} is none of STLM's datasets, and there is no such file; {meant}give a path (./{name}) or OWNER/NAME"
    )


def name_of(source: SourceConfig) -> str | None:
    """The dataset that `source_of` reads as ``source``, None when there is none."""
    if isinstance(source, HuggingFaceSource):
        field = getattr(source.document, "field", None)
        for name, known in REGISTRY.items():
            if known == (source.path, source.name, field):
                return name
        return source.path if source.name is None else None
    if not isinstance(source, TextSource | JsonlSource | ParquetSource) or not isinstance(source.path, str):
        return None
    if (
        source.path in REGISTRY
        or source.path in UNREADABLE
        or (_ending(source.path) is None and "/" not in source.path)
    ):
        return f"./{source.path}"
    return source.path


def _kind(path: Path) -> str:
    """What kind of source a file or a folder is: by its name, or by what a folder holds."""
    if not path.is_dir():
        return _ending(path.name) or "text"
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return "huggingface"
    for kind in ("jsonl", "parquet"):
        if next(path.glob(f"*.{kind}*"), None) is not None:
            return kind
    return "text"


def _ending(name: str) -> str | None:
    plain = name.removesuffix(".gz").removesuffix(".zst")
    return next((kind for ending, kind in _ENDINGS.items() if plain.endswith(ending)), None)
