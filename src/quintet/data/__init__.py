"""From sources to batches: sources → documents → tokens → store → mixture → batch. No torch in here."""

import quintet.piano.tokenizers  # noqa: F401  makes its kinds known to quintet.tokenize
