"""Tokenizers turn text into ids and back: bytes, characters, trained byte-pair encodings, tiktoken's, Hugging Face's.

``registry.py`` has the table of kinds, builds the tokenizer of a config and loads a saved one. ``base.py`` defines the
`Tokenizer` protocol, and what all kinds share: bytes of ids, the cutting of long texts, the folder of a saved one. The
kinds are in ``simple.py`` (bytes, characters, ids without a text), ``bpe.py`` (trained here), ``openai.py`` (tiktoken)
and ``huggingface.py``, whose `tokenizer.json` and other files ``tokenizer_files.py`` reads; those of notes are in
`quintet.piano.tokenizers`.

A text becomes ids by ``encode``; ``bounds.py`` knows the ids before and after it, and ``chat.py`` writes a conversation
by its template first. Ids become text again one by one in ``stream.py``, up to a stop string. To write any tokenizer
for `transformers` there is ``transformers_folder.py``.
"""

from quintet.tokenize.base import TokenBytes, Tokenizer
from quintet.tokenize.registry import build_tokenizer, load_tokenizer
from quintet.tokenize.stream import TextStream

__all__ = ["TextStream", "TokenBytes", "Tokenizer", "build_tokenizer", "load_tokenizer"]
