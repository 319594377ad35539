"""Models of the transformers library, and conversion of our transformer's weights to and from its families."""
