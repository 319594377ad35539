"""Chat template, special tokens and generation settings, from the files that lie beside a tokenizer.

They have Hugging Face's form: `tokenizer_config.json` names the special tokens and may hold a template,
`chat_template.jinja` holds the newer form of one, and `generation_config.json` says how the model writes and which ids
and texts end what it writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quintet.files import write_text
from quintet.tokenize.folder import damaged, read_bytes, read_json

_CONFIG, _OLD_MAP = "tokenizer_config.json", "special_tokens_map.json"
_TEMPLATE, _GENERATION = "chat_template.jinja", "generation_config.json"
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class ChatRules:
    """``template`` is Jinja, ``tokens`` are special tokens by the names that templates use (`bos_token`, …), and
    ``generation`` is the content of `generation_config.json`."""

    template: str | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end what a model writes, besides the one that ends a document."""
        return tuple(_listed(self.generation.get("eos_token_id")))

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end what a model writes."""
        return tuple(_listed(self.generation.get("stop_strings")))

    def known_to(self, vocabulary: Mapping[str, int]) -> ChatRules:
        """Without the tokens and ids that ``vocabulary`` lacks, for which a model would have no row."""
        ids = set(vocabulary.values())
        generation = dict(self.generation)
        if self.end_ids:
            generation["eos_token_id"] = [end for end in self.end_ids if end in ids]
        return replace(
            self,
            tokens={name: token for name, token in self.tokens.items() if token in vocabulary},
            generation=generation,
        )


def read_chat_rules(folder: Path) -> ChatRules:
    """The rules in the files of ``folder``, as far as there are any. Raises UserError for a file that is damaged."""
    newer = {name: value for name, value in _object(folder / _CONFIG).items() if value is not None}
    settings = _object(folder / _OLD_MAP) | newer
    own = folder / _TEMPLATE
    template = read_bytes(own).decode("utf-8", errors="replace") if own.is_file() else settings.get("chat_template")
    return ChatRules(default_template(template), named_tokens(settings), read_generation(folder))


def read_generation(folder: Path) -> dict[str, Any]:
    """The content of `generation_config.json`, {} where there is none. Raises UserError for one that is damaged."""
    file = folder / _GENERATION
    found = _object(file)
    if not all(isinstance(end, int) for end in _listed(found.get("eos_token_id"))):
        raise damaged(file, "its eos_token_id is neither an id nor a list of ids")
    if not all(isinstance(stop, str) and stop for stop in _listed(found.get("stop_strings"))):
        raise damaged(file, "its stop_strings are neither a text nor a list of texts")
    return found


def default_template(found: Any) -> str | None:
    """The template for chats where a tokenizer has several, by name or as a list of pairs."""
    if isinstance(found, list):
        found = {one["name"]: one["template"] for one in found}
    return found.get("default") if isinstance(found, dict) else found


def named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Name and text of the special tokens in ``settings``, which write a token as a text or as an object."""
    tokens = {name: settings[name] for name in _NAMES if settings.get(name)}
    return {name: token["content"] if isinstance(token, dict) else str(token) for name, token in tokens.items()}


def write_rules(folder: Path, rules: ChatRules) -> None:
    """Write template and generation settings where transformers looks for them first."""
    if rules.template is not None:
        write_text(folder / _TEMPLATE, rules.template)
    if rules.generation:
        write_text(folder / _GENERATION, json.dumps(dict(rules.generation), ensure_ascii=False, indent=1))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _object(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
