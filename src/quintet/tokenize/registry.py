"""The table of kinds of tokenizers; a tokenizer from a config, or from the folder of a saved one."""

from collections.abc import Callable, Iterable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from quintet.config.names import local_path, run_named
from quintet.config.tokenizer import SavedTokenizerConfig, TokenizerConfig
from quintet.errors import UserError
from quintet.files import new_folder
from quintet.tokenize.base import DESCRIPTION, Tokenizer, damaged, digest, read_description, versions_of

Documents = Callable[[], Iterable[Any]]
"""A function that yields the documents of a corpus: texts, or pieces of music for a kind that is trained on notes."""

TOKENIZERS = {
    "byte": "quintet.tokenize.simple:ByteTokenizer",
    "char": "quintet.tokenize.simple:CharTokenizer",
    "ids": "quintet.tokenize.simple:IdTokenizer",
    "bpe": "quintet.tokenize.bpe:BPETokenizer",
    "tiktoken": "quintet.tokenize.openai:TiktokenTokenizer",
    "huggingface": "quintet.tokenize.huggingface:HuggingFaceTokenizer",
    "saved": "quintet.tokenize.registry:SavedTokenizer",
    "exponential_time": "quintet.piano.tokenizers.exponential:ExponentialTimeTokenizer",
    "miditok": "quintet.piano.tokenizers.miditok:MidiTokTokenizer",
    "note_bpe": "quintet.piano.tokenizers.bpe:NoteBPETokenizer",
}
"""The class of each kind, by name, so that its library is imported when it is used and not before.

A class has ``build(config, documents)``, and ``load(folder, description)`` if its ``save`` writes this kind. A class
with ``trained_on``, "text" or "notes", is made from documents once and kept in the cache. ``libraries`` names the
packages on PyPI that decide its ids, and ``read_by`` those that only convert its files: the fingerprint holds what they
make of them.
"""

_RECIPE = "1"  # raise it when training changes, so that no tokenizer of an older recipe is found in a cache


def tokenizer_class(kind: str) -> Any:
    """Return the class of ``kind``."""
    return resolve_name(TOKENIZERS[kind])


def tokenizer_libraries() -> tuple[str, ...]:
    """Return the libraries that the tokenizers of all kinds name, by their names on PyPI."""
    classes = [tokenizer_class(name) for name in TOKENIZERS]
    return tuple(name for one in classes for key in ("libraries", "read_by") for name in getattr(one, key, ()))


def trained_on(config: TokenizerConfig) -> Literal["text", "notes"] | None:
    """Return what the tokenizer of ``config`` is trained on, None if it is not trained."""
    return getattr(tokenizer_class(config.kind), "trained_on", None)


def build_tokenizer(config: TokenizerConfig, documents: Documents, corpus: str, cache: Path) -> Tokenizer:
    """Return the tokenizer that ``config`` describes.

    A kind that is trained is trained once on ``documents`` and kept under ``cache/tokenizers``, by ``corpus``, the
    fingerprint of the documents. Raises UserError for all that the user can mend: no text, no network, no file, no end
    token.
    """
    kind = tokenizer_class(config.kind)
    if trained_on(config) is None:
        return kind.build(config, documents)
    folder = cache / "tokenizers" / _key(config, corpus)
    if not folder.exists():
        tokenizer = kind.build(config, documents)
        with new_folder(folder, shared=True) as unfinished:
            tokenizer.save(unfinished)
    return load_tokenizer(folder)


def is_kept(config: TokenizerConfig, corpus: str, cache: Path) -> bool:
    """Return True if the tokenizer that ``config`` trains on the corpus with this fingerprint is in the cache."""
    return (cache / "tokenizers" / _key(config, corpus)).exists()


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer that ``save`` wrote into ``folder``. Raises UserError when a file is missing or damaged."""
    description = read_description(folder)
    name, file = description.get("kind"), folder / DESCRIPTION
    if not isinstance(name, str) or name not in TOKENIZERS or not hasattr(tokenizer_class(name), "load"):
        raise damaged(file, f"its kind is {name!r}")
    tokenizer: Tokenizer = tokenizer_class(name).load(folder, description)
    if tokenizer.fingerprint != description["fingerprint"]:
        raise damaged(file, f"its fingerprint is {description['fingerprint']}, its content's {tokenizer.fingerprint}")
    return tokenizer


class SavedTokenizer:
    """The tokenizer of another run, of whatever kind."""

    @staticmethod
    def build(config: SavedTokenizerConfig, documents: Documents) -> Tokenizer:
        """Raises UserError when the path names no tokenizer, or a begin token is asked of a kind that has none."""
        tokenizer = load_tokenizer(_folder_of(config.path))
        if config.begin == "auto":
            return tokenizer
        from quintet.tokenize.huggingface import HuggingFaceTokenizer, named_begin

        if isinstance(tokenizer, HuggingFaceTokenizer):
            return tokenizer.beginning_with(named_begin(tokenizer) if config.begin else ())
        if config.begin:
            raise UserError("tokenizer.begin: the tokenizer of that run has no begin token; leave it out")
        return tokenizer


def _folder_of(path: str) -> Path:
    """Return the folder of the tokenizer that ``path`` names: in a run, or ``path`` itself. Raises UserError."""
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
    return digest(_RECIPE, config.model_dump_json(), corpus, " ".join(versions_of(_libraries(config)).values()))


def _libraries(config: Any) -> tuple[str, ...]:
    """Return the libraries of the kind of ``config``, then those of its base."""
    base = getattr(config, "base", None)
    return (*getattr(tokenizer_class(config.kind), "libraries", ()), *(() if base is None else _libraries(base)))
