"""What the files of a tokenizer say about chats, in the form in which Hugging Face writes them.

`tokenizer_config.json` names the special tokens and may hold a template, `chat_template.jinja` beside it holds the
newer form of one, and `generation_config.json` says which ids end an answer.
"""

from __future__ import annotations

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
    ``end_ids`` end an answer besides the id that ends a document."""

    template: str | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)
    end_ids: tuple[int, ...] = ()

    def known_to(self, vocabulary: Mapping[str, int]) -> ChatRules:
        """Without the tokens and ids that ``vocabulary`` lacks, for which a model would have no row."""
        ids = set(vocabulary.values())
        return replace(
            self,
            tokens={name: token for name, token in self.tokens.items() if token in vocabulary},
            end_ids=tuple(end for end in self.end_ids if end in ids),
        )


def read_chat_rules(folder: Path) -> ChatRules:
    """The rules in the files of ``folder``, as far as there are any. Raises UserError for a file that is damaged."""
    newer = {name: value for name, value in _object(folder / _CONFIG).items() if value is not None}
    settings = _object(folder / _OLD_MAP) | newer
    own = folder / _TEMPLATE
    template = read_bytes(own).decode("utf-8", errors="replace") if own.is_file() else settings.get("chat_template")
    ends = _object(folder / _GENERATION).get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(isinstance(end, int) for end in ends):
        raise damaged(folder / _GENERATION, "its eos_token_id is neither an id nor a list of ids")
    return ChatRules(default_template(template), named_tokens(settings), tuple(ends))


def default_template(found: Any) -> str | None:
    """The template for chats where a tokenizer has several, by name or as a list of pairs."""
    if isinstance(found, list):
        found = {one["name"]: one["template"] for one in found}
    return found.get("default") if isinstance(found, dict) else found


def named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Name and text of the special tokens in ``settings``, which write a token as a text or as an object."""
    tokens = {name: settings[name] for name in _NAMES if settings.get(name)}
    return {name: token["content"] if isinstance(token, dict) else str(token) for name, token in tokens.items()}


def write_template(folder: Path, rules: ChatRules) -> None:
    """Write the template where transformers looks for it first."""
    if rules.template is not None:
        write_text(folder / _TEMPLATE, rules.template)


def _object(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
