"""Hugging Face: models of the transformers library, and the transformer's weights in the forms of their families."""
