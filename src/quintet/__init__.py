"""Quintet trains language models, of text and of piano music, from one typed YAML file."""

__version__ = "0.1.0"
