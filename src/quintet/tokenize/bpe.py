"""Byte-level byte-pair encodings trained on a corpus (Sennrich et al. 2016; Radford et al. 2019)."""

from collections.abc import Callable, Iterable, Iterator

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from quintet.config.tokenizer import BPETokenizerConfig
from quintet.errors import UserError
from quintet.tokenize.base import END_OF_TEXT, check_text
from quintet.tokenize.huggingface import HuggingFaceTokenizer
from quintet.tokenize.tokenizer_files import CHARACTER_OF

SIMPLE_BYTES = (0x09, 0x0A, *range(0x20, 0x7F))
_NOT_SIMPLE = r"[^\t\n -~]"

_MIN_FREQUENCY = 2  # a pair that occurs once saves one token in the whole corpus
_PART = 65_536  # characters; long documents are cut, so that the selection from a corpus of one file is even too


class BPETokenizer:
    """A kind of tokenizer that is trained: a byte-level BPE, which is then one of the kind `huggingface`."""

    trained_on = "text"
    libraries = ("tokenizers",)

    @staticmethod
    def build(config: BPETokenizerConfig, documents: Callable[[], Iterable[str]]) -> HuggingFaceTokenizer:
        """Return a tokenizer with ``config.vocab_size`` ids, or fewer if the corpus has no more pairs to merge.

        The same texts give the same tokenizer, on any number of cores. Raises UserError when there is no text.
        """
        texts = select_evenly(documents(), config.train_bytes)
        if not texts:
            raise UserError("tokenizer: the sources hold no text to train on; check data.sources")
        library = _untrained(config.simplify)
        alphabet = SIMPLE_BYTES if config.simplify else range(256)
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            min_frequency=_MIN_FREQUENCY,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=[CHARACTER_OF[value] for value in alphabet],
            show_progress=False,
        )
        library.train_from_iterator(texts, trainer)
        return HuggingFaceTokenizer(library.to_str(), END_OF_TEXT)


def _untrained(simplify: bool) -> tokenizers.Tokenizer:
    """Return GPT-2's steps around the merges; ``simplify`` puts a normaliser and cuts around digits before them."""
    library = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if simplify:
        # NFD separates accents from their letters; the class then drops accents and foreign characters: é becomes e.
        drop = normalizers.Replace(tokenizers.Regex(_NOT_SIMPLE), "")
        library.normalizer = normalizers.Sequence([normalizers.NFD(), drop])
        cuts = [pre_tokenizers.Digits(individual_digits=True), level]
        library.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    else:
        library.pre_tokenizer = level
    library.decoder = decoders.ByteLevel()
    return library


def select_evenly(texts: Iterable[str], budget: int) -> list[str]:
    """Return parts of ``texts``, ``budget`` UTF-8 bytes in all, evenly from the whole corpus; all of a smaller corpus.

    Every k-th part is kept. k is 1 at first; when more than twice the budget is kept, every second of the kept parts is
    dropped and k doubles. So memory stays within two budgets and one part, and the kept parts are always the parts 0,
    k, 2k, … of all that were read. At the end the kept parts, one to two budgets, are thinned evenly to the budget. A
    reservoir of random draws would be as good on average, but uneven by chance; the head of the corpus would be the
    first source only.
    """
    kept: list[tuple[str, int]] = []
    every, size = 1, 0
    for index, part in enumerate(_parts(texts, max(1, min(_PART, budget // 64)))):
        if index % every:
            continue
        length = len(part.encode("utf-8"))
        kept.append((part, length))
        size += length
        while size > 2 * budget and len(kept) > 1:
            kept, every = kept[::2], 2 * every
            size = sum(length for _, length in kept)
    return _thinned(kept, size, budget)


def _thinned(kept: list[tuple[str, int]], size: int, budget: int) -> list[str]:
    """Return parts at even distances that hold about ``budget`` of the ``size`` bytes."""
    if size <= budget:
        return [part for part, _ in kept]
    chosen: list[str] = []
    read = written = 0
    for part, length in kept:
        read += length
        if written * size < read * budget:
            chosen.append(part)
            written += length
    return chosen


def _parts(texts: Iterable[str], length: int) -> Iterator[str]:
    """Yield ``texts`` in parts of at most ``length`` characters, cut after a line or a word if there is one."""
    for text in texts:
        check_text(text)
        start = 0
        while len(text) - start > length:
            end = max(text.rfind(mark, start + length // 2, start + length) for mark in "\n ") + 1 or start + length
            yield text[start:end]
            start = end
        if start < len(text):
            yield text[start:]
