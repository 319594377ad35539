"""Tokenizers turn notes into ids: one class a kind, named in the table of `quintet.tokenize.registry`."""
