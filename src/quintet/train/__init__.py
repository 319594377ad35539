"""Training: the loop and what it needs beside the data and the model."""

import quintet.piano.tokenizers  # noqa: F401  makes its kinds known to quintet.tokenize
