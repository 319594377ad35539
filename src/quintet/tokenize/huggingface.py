"""Tokenizers of Hugging Face's library `tokenizers`: those of published models, and those that Quintet trains."""

from __future__ import annotations

import importlib
import io
import json
import pickle
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import tokenizers

from quintet.config.keypath import is_mapping
from quintet.config.names import is_hub_name, local_path
from quintet.config.tokenizer import HuggingFaceTokenizerConfig
from quintet.errors import UserError, one_line
from quintet.files import from_json, write_text
from quintet.libraries import require
from quintet.tokenize import tokenizer_files
from quintet.tokenize.base import (
    DESCRIPTION,
    END_OF_TEXT,
    PART,
    Decoding,
    Spans,
    TokenBytes,
    check_text,
    cut_text,
    damaged,
    digest,
    encode_in_parts,
    read_bytes,
    read_json,
    write_description,
)
from quintet.tokenize.tokenizer_files import (
    ChatRules,
    default_template,
    named_tokens,
    read_chat_rules,
    read_generation,
    write_rules,
)

_FILE = "tokenizer.json"
# Files beside it that may define tokens and the order of special ids, as transformers reads them.
_BESIDE = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
_USUAL_ENDS = (END_OF_TEXT, "</s>", "[SEP]", "<eos>")
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("builtins", "dict"),
    ("copyreg", "_reconstructor"),
    ("builtins", "object"),
    ("_codecs", "encode"),
    ("tokenizers", "Tokenizer"),
    ("tokenizers", "AddedToken"),
    ("tokenizers.models", "Model"),
    ("transformers.tokenization_utils_base", "AddedToken"),
}


class HuggingFaceTokenizer(Decoding):
    """A `tokenizer.json` applied to the text only: no special ids, no truncation, no padding, no dropout.

    ``chat`` is kept beside it and says how the tokenizer's files write a conversation. ``begin_ids`` precede each
    document, prompt and measured text.
    """

    libraries = ("tokenizers",)
    read_by = ("transformers", "sentencepiece")

    def __init__(
        self,
        rules: str | tokenizer_files.Rules,
        end: str,
        chat: ChatRules | None = None,
        begin_ids: tuple[int, ...] | None = None,
    ) -> None:
        """``rules`` is the content of a `tokenizer.json`, as text or parsed; ``end`` is the token that ends a document.
        Without ``begin_ids``, those that the rules put in front of a text are used.

        Raises ValueError when the library cannot read the rules, and UserError when ``end`` is not in the vocabulary.
        """
        parsed = from_json(rules) if isinstance(rules, str) else rules
        self._rules, self._post_processor = tokenizer_files.bare(parsed), parsed.get("post_processor")
        self.begin_ids = tokenizer_files.begin_ids(self._post_processor) if begin_ids is None else begin_ids
        self._end = end
        self._library = _library(self._rules)
        vocabulary = _vocabulary(self._rules)
        self.vocab_size = max(vocabulary.values()) + 1
        if end not in vocabulary:
            raise UserError(f"tokenizer: the token that ends a document, {end!r}, is not in the vocabulary")
        self.end_id = vocabulary[end]
        known = (chat or ChatRules()).known_to(vocabulary)
        self.chat = replace(known, tokens={**known.tokens, "eos_token": end})
        self.can_cut = tokenizer_files.cuts_like_gpt2(self._rules)

    @classmethod
    def build(cls, config: HuggingFaceTokenizerConfig, documents: Any) -> HuggingFaceTokenizer:
        return huggingface_tokenizer(config.path, config.revision, config.begin)

    @classmethod
    def load(cls, folder: Path, description: dict[str, Any]) -> HuggingFaceTokenizer:
        # A folder of an earlier version names the ids that end an answer here, and its tokenizer has no begin ids.
        end, begin_ids, chat_end_ids = (description.get(name) for name in ("end", "begin_ids", "chat_end_ids"))
        if not isinstance(end, str):
            raise damaged(folder / DESCRIPTION, "it does not say which token ends a document")
        chat = read_chat_rules(folder)
        if chat_end_ids:
            chat = replace(chat, generation={"eos_token_id": chat_end_ids})
        file = folder / _FILE
        content = read_bytes(file)
        try:
            return cls(content.decode("utf-8"), end, chat, tuple(begin_ids or ()))
        except (ValueError, KeyError, TypeError, UserError) as error:
            raise damaged(file, f"{type(error).__name__}: {error}") from None

    def __reduce__(self) -> tuple[type[HuggingFaceTokenizer], tuple[str, str, ChatRules, tuple[int, ...]]]:
        return (HuggingFaceTokenizer, (self._content(self.begin_ids), self._end, self.chat, self.begin_ids))

    def beginning_with(self, begin_ids: tuple[int, ...]) -> HuggingFaceTokenizer:
        """Return this tokenizer with other ids in front of each text."""
        return HuggingFaceTokenizer(self._content(self.begin_ids), self._end, self.chat, begin_ids)

    def _content(self, begin_ids: tuple[int, ...]) -> str:
        """Return the content of a `tokenizer.json` that puts ``begin_ids`` in front of a text. A post-processor that
        does so is kept, with whatever else it puts around a text."""
        post_processor = self._post_processor
        if tokenizer_files.begin_ids(post_processor) != begin_ids:
            names = {number: token for token, number in _vocabulary(self._rules).items()}
            post_processor = tokenizer_files.beginning_with({names[number]: number for number in begin_ids})
        return tokenizer_files.serialized({**self._rules, "post_processor": post_processor})

    @property
    def lossless(self) -> bool:
        return tokenizer_files.is_lossless(self._rules)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        begin = [f"begin {self.begin_ids}"] if self.begin_ids else []
        return digest("huggingface", tokenizer_files.serialized(self._rules), str(self.end_id), *begin)

    @cached_property
    def _pieces(self) -> TokenBytes:
        tokens = {index: token for token, index in _vocabulary(self._rules).items()}
        decoder = self._library.decoder
        decode = decoder.decode if decoder is not None else " ".join
        pieces = tokenizer_files.pieces_of(self._rules, tokens, decode, self.vocab_size)
        table = tuple(b"" if index == self.end_id else piece for index, piece in enumerate(pieces.table))
        return TokenBytes(table, pieces.leading_space)

    def encode(self, text: str) -> list[int]:
        if self.can_cut and len(text) > 2 * PART:
            return self.encode_batch([text])[0].tolist()
        check_text(text)
        return self._library.encode(text, add_special_tokens=False).ids

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Id of each special token, by the text that stands for it in a template."""
        added = {token["content"]: token["id"] for token in self._rules["added_tokens"] if token["special"]}
        vocabulary = _vocabulary(self._rules)
        return added | {token: vocabulary[token] for token in self.chat.tokens.values()}

    @property
    def continuing_ids(self) -> list[int]:
        """The ids that continue a word, which a prefix such as WordPiece's ## marks."""
        mark = self._rules["model"].get("continuing_subword_prefix")
        return [number for token, number in _vocabulary(self._rules).items() if mark and token.startswith(mark)]

    @property
    def unknown_id(self) -> int | None:
        """The id of text that the vocabulary cannot write, None if there is none."""
        model = self._rules["model"]
        return model["unk_id"] if "unk_id" in model else _vocabulary(self._rules).get(model.get("unk_token"))

    def encode_template(self, text: str) -> list[int]:
        """Return the ids of a text that a template wrote: the text of a special token is its id."""
        check_text(text)
        return self._template_library.encode(text, add_special_tokens=False).ids

    @cached_property
    def _template_library(self) -> tokenizers.Tokenizer:
        library = tokenizers.Tokenizer.from_str(tokenizer_files.serialized(self._rules))
        added = {token["content"] for token in self._rules["added_tokens"]}
        add_special_tokens(library, [token for token in self.chat.tokens.values() if token not in added])
        return library

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            check_text(text)
        return encode_in_parts(texts, self._encode_all) if self.can_cut else self._encode_all(texts)

    def encode_spans(self, texts: Sequence[str], *, template: bool = False) -> list[Spans]:
        """Encode many texts, with ``template`` as ``encode_template`` does, with the characters of each id."""
        for text in texts:
            check_text(text)
        library = self._template_library if template else self._library
        parts = [list(cut_text(text, PART)) if self.can_cut and not template else [text] for text in texts]
        encodings = iter(library.encode_batch([part for text in parts for part in text], add_special_tokens=False))
        return [Spans.joined([_spans(next(encodings)) for _ in text], list(map(len, text))) for text in parts]

    def _encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.frombuffer(array("I", encoding.ids), dtype=np.uint32) for encoding in encodings]

    def save(self, folder: Path) -> None:
        """Write Quintet's description beside files that ``transformers.AutoTokenizer`` loads."""
        self.write_for_transformers(folder, self.begin_ids)
        facts = {"end": self._end, "begin_ids": list(self.begin_ids)}
        write_description(folder, "huggingface", self.fingerprint, facts)

    def write_for_transformers(
        self, folder: Path, begin_ids: tuple[int, ...], settings: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Write files for ``transformers.AutoTokenizer`` into ``folder``, of a tokenizer that puts ``begin_ids`` in
        front of a text; ``settings`` go into `tokenizer_config.json`."""
        write_text(folder / _FILE, self._content(begin_ids))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings, **self.chat.tokens}
        write_text(folder / "tokenizer_config.json", json.dumps(settings, ensure_ascii=False, indent=1))
        write_rules(folder, self.chat)


class _TakesTokens(Protocol):
    """The method of the library's tokenizer whose argument the library's stubs leave untyped."""

    def add_special_tokens(self, tokens: list[str]) -> int: ...


def add_special_tokens(library: _TakesTokens, tokens: Iterable[str]) -> None:
    """Add ``tokens`` to ``library``, a ``tokenizers.Tokenizer``, as special tokens."""
    library.add_special_tokens(list(tokens))


def _spans(encoding: tokenizers.Encoding) -> Spans:
    bounds = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    return Spans(np.array(encoding.ids, dtype=np.uint32), bounds[:, 0], bounds[:, 1])


def huggingface_tokenizer(
    path: str, revision: str | None = None, begin: bool | Literal["auto"] = "auto"
) -> HuggingFaceTokenizer:
    """Return the tokenizer of a folder, of a `tokenizer.json`, or of a name on the hub at a ``revision`` of it.

    ``begin``: each text begins with the tokenizer's begin token; "auto" as the tokenizer itself does. Ids are those of
    ``transformers.AutoTokenizer``, which reads all files of a folder; a `tokenizer.json` by itself needs no
    transformers. Raises UserError when there is no tokenizer, or when it has no token that ends a document.
    """
    tokenizer = _read(path, revision)
    return tokenizer if begin == "auto" else tokenizer.beginning_with(named_begin(tokenizer) if begin else ())


def named_begin(tokenizer: HuggingFaceTokenizer) -> tuple[int, ...]:
    """Return the ids that a text begins with if a begin token is asked for: those that the tokenizer puts there, else
    its `bos_token`, else the token that ends documents."""
    bos = tokenizer.chat.tokens.get("bos_token")
    return tokenizer.begin_ids or ((tokenizer.end_id,) if bos is None else (tokenizer.special_tokens[bos],))


def _read(path: str, revision: str | None) -> HuggingFaceTokenizer:
    local = local_path(path)
    file = local / _FILE if local.is_dir() else local
    if file.suffix == ".pkl" and file.is_file():
        rules, chat = _rules_of(load_pickled(file), path)
        where = path
    elif file.is_file() and not (local.is_dir() and any((local / name).is_file() for name in _BESIDE)):
        rules, chat = _alone(file)
        where = str(file)
    else:
        rules, chat = _from_transformers(path, local, revision)
        where = str(file) if file.is_file() else path
    end = chat.tokens.get("eos_token")
    try:
        vocabulary = _vocabulary(rules)
        end = end or next((token for token in _USUAL_ENDS if token in vocabulary), None)
        if end is None or end not in vocabulary:
            raise UserError(_no_end(where, end))
        return HuggingFaceTokenizer(rules, end, chat)
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(where, error) from None


def _unreadable(where: object, error: Exception) -> UserError:
    return UserError(f"{where}: is no tokenizer.json that `tokenizers` can read ({error}); make it anew")


def _library(rules: tokenizer_files.Rules) -> tokenizers.Tokenizer:
    """Return the library's tokenizer. Raises ValueError when the library cannot read ``rules``."""
    text = tokenizer_files.serialized(tokenizer_files.without_special_pieces(rules))
    try:
        library = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(str(error)) from error
    library.encode_special_tokens = True
    return library


def _vocabulary(rules: tokenizer_files.Rules) -> dict[str, int]:
    """Return the id of each token, added ones included."""
    pieces = rules["model"]["vocab"]
    vocabulary: dict[str, int] = pieces if is_mapping(pieces) else {piece: at for at, (piece, _) in enumerate(pieces)}
    return vocabulary | {token["content"]: token["id"] for token in rules["added_tokens"]}


def _no_end(where: str, end: str | None) -> str:
    if end is None:
        return (
            f'{where}: no token is known to end a document; name one as "eos_token" in tokenizer_config.json beside it '
            f"(the usual {', '.join(_USUAL_ENDS)} are not in the vocabulary)"
        )
    return f"{where}: the eos_token {end!r} of tokenizer_config.json is not in the vocabulary; correct it there"


def _alone(file: Path) -> tuple[tokenizer_files.Rules, ChatRules]:
    """Return the rules of a `tokenizer.json`, without the help of transformers."""
    chat = read_chat_rules(file.parent)
    try:
        return from_json(read_bytes(file).decode("utf-8", errors="replace")), chat
    except ValueError as error:
        raise _unreadable(file, error) from None


def _from_transformers(path: str, local: Path, revision: str | None) -> tuple[tokenizer_files.Rules, ChatRules]:
    """Return the rules of a folder, or of a name on the hub, as `transformers` reads them."""
    if not local.is_dir() and not is_hub_name(path):
        raise UserError(
            f"tokenizer.path: {path} does not exist; give a folder with {_FILE}, that file, or a name on the hub"
        )
    alone = f"name {local / _FILE} to take that file alone" if (local / _FILE).is_file() else ""
    library = require("transformers", "hf", f"tokenizer.path: reading {path} as transformers does", alone)
    name = str(local) if local.is_dir() else path
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(name, revision=revision or "main")
    except Exception as error:  # each tokenizer class of transformers has its own ways to fail
        if (local / _FILE).is_file():  # a class that transformers does not know, or settings that it does not take
            return _alone(local / _FILE)
        raise UserError(
            f"tokenizer.path: {path} is neither a folder with {_FILE} nor a tokenizer that transformers can load "
            f"({one_line(error, lines=1)}); correct the path, or fetch the tokenizer once with a network"
        ) from None
    rules, chat = _rules_of(tokenizer, path)
    if local.is_dir():
        return _with_rows(rules, local), replace(chat, generation=read_generation(local))
    try:
        generation = library.GenerationConfig.from_pretrained(path, revision=revision or "main").to_diff_dict()
    except OSError:  # the name has no such file
        generation = {}
    return rules, replace(chat, generation=generation)


def _with_rows(rules: tokenizer_files.Rules, folder: Path) -> tokenizer_files.Rules:
    """Return ``rules`` without the added tokens for which the model in ``folder`` has no row: transformers gives an id
    to each token that a file names, even if the model was never resized for it."""
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    text = config.get("text_config")
    rows = config.get("vocab_size", text.get("vocab_size") if is_mapping(text) else None)
    if not isinstance(rows, int):
        return rules
    return {**rules, "added_tokens": [token for token in rules["added_tokens"] if token["id"] < rows]}


def _rules_of(tokenizer: Any, path: str) -> tuple[tokenizer_files.Rules, ChatRules]:
    """Return the rules of a tokenizer of `transformers`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"tokenizer.path: {path} has no fast tokenizer; convert it to a {_FILE} first")
    chat = ChatRules(default_template(tokenizer.chat_template), named_tokens(tokenizer.special_tokens_map))
    return from_json(backend.to_str()), chat


def load_pickled(file: Path) -> Any:
    """Return the transformers tokenizer that was pickled into ``file``.

    Only classes of tokenizers and of their parts are loaded; everything else is refused before it runs. Raises
    UserError for a file that holds something else, or that this version of the library cannot read.
    """
    try:
        tokenizer = _Unpickler(io.BytesIO(read_bytes(file))).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: holds no tokenizer that can be read ({error}); load it where it was made, and save it with "
            "save_pretrained"
        ) from None
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(f"{file}: holds a {type(tokenizer).__name__}, which is no fast tokenizer")
    return tokenizer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) in _ALLOWED or _is_tokenizer(module_name, global_name):
            return super().find_class(module_name, global_name)
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is part of no tokenizer")


def _is_tokenizer(module_name: str, global_name: str) -> bool:
    """Return True for a tokenizer class of the library, False for its functions and other classes."""
    if not module_name.startswith("transformers.") or "." in global_name or "tokeniz" not in module_name:
        return False
    base = require("transformers", "hf", "a pickled tokenizer").PreTrainedTokenizerBase
    value = getattr(importlib.import_module(module_name), global_name, None)
    return isinstance(value, type) and issubclass(value, base)
