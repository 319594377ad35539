"""The files of a Hugging Face tokenizer: the rules of `tokenizer.json`, and the files beside it.

`tokenizer_config.json` names the special tokens and may hold a chat template; newer tokenizers have the template in
`chat_template.jinja`. `generation_config.json` says which ids and texts end what the model writes.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quintet.config.keypath import is_list, is_mapping
from quintet.errors import UserError
from quintet.files import write_text
from quintet.tokenize.base import TokenBytes, damaged, read_bytes, read_json

Rules = dict[str, Any]

_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_CONFIG, _OLD_MAP = "tokenizer_config.json", "special_tokens_map.json"
_TEMPLATE, _GENERATION = "chat_template.jinja", "generation_config.json"
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def bare(rules: Rules) -> Rules:
    """Return ``rules`` without truncation, padding, the special ids of the post-processor, and BPE dropout, which would
    give a text other ids at every call: ids follow from the text only."""
    model = {**rules["model"], "dropout": None} if "dropout" in rules["model"] else rules["model"]
    return {**rules, "truncation": None, "padding": None, "post_processor": None, "model": model}


def begin_ids(post_processor: Rules | None) -> tuple[int, ...]:
    """Return the special ids that a post-processor puts in front of a single text."""
    match post_processor:
        case {"type": "TemplateProcessing", "single": parts, "special_tokens": ids} if is_list(parts) and is_mapping(
            ids
        ):
            leading = itertools.takewhile(lambda part: "SpecialToken" in part, parts)
            return tuple(number for part in leading for number in ids[part["SpecialToken"]["id"]]["ids"])
        case {"type": "BertProcessing" | "RobertaProcessing", "cls": [_, int(number)]}:
            return (number,)
        case {"type": "Sequence", "processors": parts} if is_list(parts):
            return tuple(number for part in reversed(parts) for number in begin_ids(part))
        case _:
            return ()


def beginning_with(tokens: dict[str, int]) -> Rules | None:
    """Return a post-processor that puts the special ``tokens``, ids by their text, in front of each text."""
    if not tokens:
        return None
    special = {token: {"id": token, "ids": [number], "tokens": [token]} for token, number in tokens.items()}

    def text(name: str, kind: int) -> list[Rules]:
        front: list[Rules] = [{"SpecialToken": {"id": token, "type_id": kind}} for token in tokens]
        return [*front, {"Sequence": {"id": name, "type_id": kind}}]

    single = text("A", 0)
    return {"type": "TemplateProcessing", "single": single, "pair": single + text("B", 1), "special_tokens": special}


def serialized(rules: Rules) -> str:
    """Return ``rules`` as text that does not depend on the order of their keys."""
    return json.dumps(rules, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def without_special_pieces(rules: Rules) -> Rules:
    """Return ``rules`` for encoding in which the text "</s>" is never the piece "</s>".

    A unigram model matches all of its pieces in the text, special ones too. A space at the end of a special piece keeps
    it from matching, since `Metaspace` replaces all spaces of the text. Other rules are returned as they are.
    """
    cuts = [part["type"] for part in steps(rules["pre_tokenizer"])]
    if rules["model"]["type"] != "Unigram" or "Metaspace" not in cuts:
        return rules
    special = {token["content"] for token in rules["added_tokens"] if token["special"]}

    def hidden(content: str) -> str:
        return content + " " if content in special else content

    vocabulary = [[hidden(piece), score] for piece, score in rules["model"]["vocab"]]
    added = [{**token, "content": hidden(token["content"])} for token in rules["added_tokens"]]
    return {**rules, "added_tokens": added, "model": {**rules["model"], "vocab": vocabulary}}


def is_lossless(rules: Rules) -> bool:
    """Return True if decoding certainly gives back every text; False if that is not certain.

    True needs a byte-level BPE with all 256 bytes, no normaliser, no space put in front, and pre-tokenisers that only
    cut.
    """
    model, cuts = rules["model"], steps(rules["pre_tokenizer"])
    levels = [part for part in cuts if part["type"] == "ByteLevel"]
    return (
        model["type"] == "BPE"
        and not any(model.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"))
        and set(BYTE_OF) <= model["vocab"].keys()
        and rules["normalizer"] is None
        and len(levels) == 1
        and not levels[0]["add_prefix_space"]
        and all(part["type"] in {"ByteLevel", "Digits", "Punctuation", "Split"} for part in cuts)
        and not any(part.get("behavior") == "Removed" for part in cuts)
        and [part["type"] for part in steps(rules["decoder"])] == ["ByteLevel"]
        and not any(token["lstrip"] or token["rstrip"] for token in rules["added_tokens"] if not token["special"])
    )


def cuts_like_gpt2(rules: Rules) -> bool:
    """Return True if the text is cut by GPT-2's pattern (and at digits) before anything else, as `cut_text` assumes."""
    cuts = steps(rules["pre_tokenizer"])
    return (
        all(part["type"] in {"Digits", "ByteLevel"} for part in cuts)
        and any(part["type"] == "ByteLevel" and part.get("use_regex", True) for part in cuts)
        and not any(part.get("add_prefix_space") for part in cuts)
        and all(part["type"] in {"NFD", "NFC", "Replace"} for part in steps(rules["normalizer"]))
        and all(_drops_single_characters(part) for part in steps(rules["normalizer"]) if part["type"] == "Replace")
        and all(token["special"] for token in rules["added_tokens"])
    )


def pieces_of(rules: Rules, tokens: dict[int, str], decode: Callable[[list[str]], str], size: int) -> TokenBytes:
    """Return the bytes of each id, from the ``tokens`` by id and the library's decoder of a list of tokens, ``decode``.

    Byte-level tokens and byte fallbacks are read as bytes. Any other token is decoded between two others, which gives
    what it writes inside a text, with the spaces of that tokenizer. Raises UserError for a tokenizer of speech.
    """
    kinds = {part["type"] for part in steps(rules["decoder"])}
    if "CTC" in kinds:
        raise UserError("tokenizer.path: its decoder, CTC, is for speech and not for text; choose another tokenizer")
    added = {token["id"]: token for token in rules["added_tokens"]}
    between = _between(decode)
    table = [b""] * size
    for index, token in tokens.items():
        byte = _BYTE_TOKEN.fullmatch(token) if "ByteFallback" in kinds else None
        if index in added:
            table[index] = b"" if added[index]["special"] else token.encode("utf-8")
        elif byte:
            table[index] = bytes([int(byte[1], 16)])
        elif "ByteLevel" in kinds:
            table[index] = _bytes_of(token)
        else:
            table[index] = between(token).encode("utf-8")
    spaced = next((token for index, token in tokens.items() if index not in added and table[index][:1] == b" "), None)
    leading_space = "ByteLevel" not in kinds and spaced is not None and not decode([spaced]).startswith(" ")
    return TokenBytes(tuple(table), leading_space)


def steps(part: Rules | None) -> list[Rules]:
    """Return the steps of a normaliser, pre-tokeniser or decoder, with nested sequences flattened."""
    if part is None:
        return []
    inside = next((part[name] for name in ("normalizers", "pretokenizers", "decoders") if name in part), None)
    return [part] if inside is None else [step for entry in inside for step in steps(entry)]


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's characters for bytes (Radford et al. 2019): a printable one of Latin-1 for itself, others from
    U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + rank): value for rank, value in enumerate(others)}


BYTE_OF = _byte_alphabet()
CHARACTER_OF = {value: character for character, value in BYTE_OF.items()}


def _bytes_of(token: str) -> bytes:
    try:
        return bytes(BYTE_OF[character] for character in token)
    except KeyError:  # not written in the byte alphabet, so it stands for itself, as in the library's decoder
        return token.encode("utf-8")


def _between(decode: Callable[[list[str]], str]) -> Callable[[str], str]:
    before, pair = decode(["a"]), decode(["a", "a"])
    after = pair[len(before) :]

    def text(token: str) -> str:
        whole = decode(["a", token, "a"])
        assert whole.startswith(before), (token, whole)
        assert whole.endswith(after), (token, whole)
        return whole[len(before) : len(whole) - len(after)]

    return text


def _drops_single_characters(replace: Rules) -> bool:
    """Return True for a replacement that removes a class of characters without a look at their neighbours."""
    return replace["content"] == "" and re.fullmatch(r"\[[^\[\]]*\]", replace["pattern"].get("Regex", "")) is not None


@dataclass(frozen=True)
class ChatRules:
    """``template`` is Jinja, ``tokens`` are special tokens by the names that templates use (`bos_token`, …), and
    ``generation`` is the content of `generation_config.json`."""

    template: str | None = None
    tokens: Mapping[str, str] = field(default_factory=dict[str, str])
    generation: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end what a model writes, besides the one that ends a document."""
        return tuple(_listed(self.generation.get("eos_token_id")))

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end what a model writes."""
        return tuple(_listed(self.generation.get("stop_strings")))

    def known_to(self, vocabulary: Mapping[str, int]) -> ChatRules:
        """Return the rules without the tokens and ids that ``vocabulary`` lacks: a model would have no row for them."""
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
    """Return the rules in the files of ``folder``, empty if there are none. Raises UserError for a damaged file."""
    newer = {name: value for name, value in _object(folder / _CONFIG).items() if value is not None}
    settings = _object(folder / _OLD_MAP) | newer
    own = folder / _TEMPLATE
    template = read_bytes(own).decode("utf-8", errors="replace") if own.is_file() else settings.get("chat_template")
    return ChatRules(default_template(template), named_tokens(settings), read_generation(folder))


def read_generation(folder: Path) -> dict[str, Any]:
    """Return the content of `generation_config.json`, {} if there is none. Raises UserError for a damaged file."""
    file = folder / _GENERATION
    generation = _object(file)
    if not all(isinstance(end, int) for end in _listed(generation.get("eos_token_id"))):
        raise damaged(file, "its eos_token_id is neither an id nor a list of ids")
    if not all(isinstance(stop, str) and stop for stop in _listed(generation.get("stop_strings"))):
        raise damaged(file, "its stop_strings are neither a text nor a list of texts")
    return generation


def default_template(templates: Any) -> str | None:
    """Return the template for chats: the only one, or "default" of several, which have names or are a list of pairs."""
    if is_list(templates):
        return {entry["name"]: entry["template"] for entry in templates}.get("default")
    return templates.get("default") if is_mapping(templates) else templates


def named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the special tokens in ``settings``, by name; a token there is a text or an object."""
    tokens = {name: settings[name] for name in _NAMES if settings.get(name)}
    return {name: token["content"] if is_mapping(token) else str(token) for name, token in tokens.items()}


def write_rules(folder: Path, rules: ChatRules) -> None:
    """Write template and generation settings into the files that transformers reads first."""
    if rules.template is not None:
        write_text(folder / _TEMPLATE, rules.template)
    if rules.generation:
        write_text(folder / _GENERATION, json.dumps(dict(rules.generation), ensure_ascii=False, indent=1))


def _listed(value: Any) -> list[Any]:
    return value if is_list(value) else [] if value is None else [value]


def _object(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
