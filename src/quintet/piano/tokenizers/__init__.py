"""Tokenizers of notes, one class per kind, in the table of `quintet.tokenize.registry`."""
