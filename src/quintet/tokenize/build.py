"""From a config, or from a folder, to a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from quintet.config.names import local_path, run_named
from quintet.config.piano import MidiTokTokenizerConfig, NoteBPETokenizerConfig
from quintet.config.tokenizer import (
    BPETokenizerConfig,
    ByteTokenizerConfig,
    CharTokenizerConfig,
    HuggingFaceTokenizerConfig,
    IdTokenizerConfig,
    SavedTokenizerConfig,
    TiktokenTokenizerConfig,
    TokenizerConfig,
)
from quintet.errors import UserError
from quintet.files import new_folder
from quintet.tokenize.base import NO_END, Tokenizer, digest, versions_of
from quintet.tokenize.byte import ByteTokenizer
from quintet.tokenize.char import CharTokenizer, characters_of
from quintet.tokenize.folder import DESCRIPTION, damaged, read_description
from quintet.tokenize.ids import IdTokenizer
from quintet.tokenize.registry import Documents, is_registered, registered

_RECIPE = "1"  # to be raised when training changes, so that no tokenizer of an older recipe is found in a cache


def build_tokenizer(config: TokenizerConfig, texts: Documents, corpus: str, cache: Path) -> Tokenizer:
    """The tokenizer that ``config`` describes.

    ``texts`` gives the documents of the corpus (for a tokenizer of notes, the pieces) and ``corpus`` its fingerprint.
    What is trained (``char``, ``bpe``, ``note_bpe``) is made from them once and kept under ``cache/tokenizers``; the
    other kinds need neither. Raises UserError for all that the user can mend: no text, no network, no file, no end
    token.
    """
    match config:
        case ByteTokenizerConfig():
            return ByteTokenizer()
        case IdTokenizerConfig():
            return IdTokenizer(config.vocab_size, NO_END if config.end_id is None else config.end_id)
        case TiktokenTokenizerConfig():
            from quintet.tokenize.openai import tiktoken_encoding

            return tiktoken_encoding(config.name)
        case HuggingFaceTokenizerConfig():
            from quintet.tokenize.huggingface import huggingface_tokenizer

            return huggingface_tokenizer(config.path, config.revision, config.begin)
        case SavedTokenizerConfig():
            return _beginning(load_tokenizer(_folder_of(config.path)), config.begin)
        case CharTokenizerConfig():
            return _kept(cache, _key(config, corpus), lambda: characters_of(texts()))
        case BPETokenizerConfig():
            from quintet.tokenize.bpe import train_bpe

            return _kept(cache, _key(config, corpus), lambda: train_bpe(config, texts()))
        case _:
            kind = registered(config.kind)
            if not kind.trained:
                return kind.build(config, texts)
            return _kept(cache, _key(config, corpus), lambda: kind.build(config, texts))


def is_kept(config: TokenizerConfig, corpus: str, cache: Path) -> bool:
    """Whether the tokenizer that ``config`` makes of the corpus with this fingerprint is in the cache already."""
    return (cache / "tokenizers" / _key(config, corpus)).exists()


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that ``save`` wrote into ``folder``. Raises UserError when a file is missing or damaged."""
    description = read_description(folder)
    kind, file = description.get("kind"), folder / DESCRIPTION
    if kind == "byte":
        tokenizer: Tokenizer = ByteTokenizer()
    elif kind == "char":
        characters = description.get("characters")
        if not isinstance(characters, str) or not characters or sorted(set(characters)) != list(characters):
            raise damaged(file, "its characters are not distinct and sorted")
        tokenizer = CharTokenizer(characters)
    elif kind == "ids":
        size, end_id = description.get("vocab_size"), description.get("end_id")
        if not isinstance(size, int) or not isinstance(end_id, int | None):
            raise damaged(file, "it does not say how many ids there are")
        tokenizer = IdTokenizer(size, NO_END if end_id is None else end_id)
    elif kind == "tiktoken":
        from quintet.tokenize.openai import load_tiktoken

        tokenizer = load_tiktoken(folder)
    elif kind == "huggingface":
        from quintet.tokenize.huggingface import load_huggingface

        tokenizer = load_huggingface(folder)
    elif isinstance(kind, str) and is_registered(kind):
        tokenizer = registered(kind).load(folder, description)
    else:
        raise damaged(file, f"its kind is {kind!r}")
    if tokenizer.fingerprint != description["fingerprint"]:
        raise damaged(file, f"its fingerprint is {description['fingerprint']}, its content's {tokenizer.fingerprint}")
    return tokenizer


def _beginning(tokenizer: Tokenizer, begin: bool | Literal["auto"]) -> Tokenizer:
    """``tokenizer`` with a begin token or without, as it is for "auto". Raises UserError for a kind that has none."""
    if begin == "auto":
        return tokenizer
    from quintet.tokenize.huggingface import HuggingFaceTokenizer, named_begin

    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.beginning_with(named_begin(tokenizer) if begin else ())
    if begin:
        raise UserError("tokenizer.begin: the tokenizer of that run has no begin token; leave it out")
    return tokenizer


def _folder_of(path: str) -> Path:
    """The folder of the tokenizer that ``path`` names: a run's own, or ``path`` itself. Raises UserError."""
    run = run_named(path)
    if run is not None:
        return run / "tokenizer"
    folder = local_path(path)
    if not (folder / DESCRIPTION).is_file():
        raise UserError(
            f"tokenizer.path: {path} is no run (neither here nor under runs/) and no folder with a tokenizer that "
            f"Quintet wrote ({DESCRIPTION}); name the run that the weights come from"
        )
    return folder


def _key(config: TokenizerConfig, corpus: str) -> str:
    libraries = ["tokenizers"] if isinstance(config, BPETokenizerConfig | NoteBPETokenizerConfig) else []
    if isinstance(config, NoteBPETokenizerConfig) and isinstance(config.base, MidiTokTokenizerConfig):
        libraries += ["miditok", "symusic"]
    return digest(_RECIPE, config.model_dump_json(), corpus, " ".join(versions_of(libraries).values()))


def _kept(cache: Path, key: str, make: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer in the cache; made and put there when it is not there yet."""
    folder = cache / "tokenizers" / key
    if not folder.exists():
        tokenizer = make()
        with new_folder(folder, shared=True) as place:
            tokenizer.save(place)
    return load_tokenizer(folder)
