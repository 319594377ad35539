"""Byte-level byte-pair encodings trained on a corpus (Sennrich et al. 2016; Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from quintet.config.tokenizer import BPETokenizerConfig
from quintet.errors import UserError
from quintet.tokenize.base import END_OF_TEXT
from quintet.tokenize.huggingface import HuggingFaceTokenizer
from quintet.tokenize.sample import even_sample
from quintet.tokenize.tokenizer_json import CHARACTER_OF

SIMPLE_BYTES = (0x09, 0x0A, *range(0x20, 0x7F))
_NOT_SIMPLE = r"[^\t\n -~]"

# A pair that occurs once saves one token in the whole corpus, and is hardly seen again.
_MIN_FREQUENCY = 2


def train_bpe(config: BPETokenizerConfig, texts: Iterable[str]) -> HuggingFaceTokenizer:
    """A byte-level BPE with ``config.vocab_size`` ids, or fewer when the corpus has no more pairs to merge.

    The same texts give the same tokenizer, on any number of cores. Raises UserError when there is no text.
    """
    sample = even_sample(texts, config.train_bytes)
    if not sample:
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
    library.train_from_iterator(sample, trainer)
    return HuggingFaceTokenizer(library.to_str(), END_OF_TEXT)


def _untrained(simplify: bool) -> tokenizers.Tokenizer:
    """The steps around the merges: GPT-2's, and for ``simplify`` a normaliser and cuts around digits before them."""
    library = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if simplify:
        # NFD takes accents off their letters, and the class then drops them with all that is foreign: é becomes e.
        drop = normalizers.Replace(tokenizers.Regex(_NOT_SIMPLE), "")
        library.normalizer = normalizers.Sequence([normalizers.NFD(), drop])
        cuts = [pre_tokenizers.Digits(individual_digits=True), level]
        library.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    else:
        library.pre_tokenizer = level
    library.decoder = decoders.ByteLevel()
    return library
