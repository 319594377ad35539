"""Tokenizers turn text into ids: bytes, characters, trained byte-pair encodings, tiktoken's and Hugging Face's."""

from __future__ import annotations

from quintet.tokenize.base import TokenBytes, Tokenizer
from quintet.tokenize.registry import build_tokenizer, load_tokenizer
from quintet.tokenize.stream import TextStream

__all__ = ["TextStream", "TokenBytes", "Tokenizer", "build_tokenizer", "load_tokenizer"]
