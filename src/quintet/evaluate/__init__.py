"""Measuring a trained model, and writing with it.

- ``language_model.py`` has `LanguageModel`, a trained model with its tokenizer: everything that can be done with it.
- ``model_and_tokenizer.py`` has the protocol of the models that are measured: a `LanguageModel`, or one in training.
- ``continuation.py`` continues prompts of text, by sampling or beam search; ``music.py`` continues pieces of piano
  music and answers tasks.
- ``likelihood.py`` computes the probability of each token of a document. From it ``text_modeling.py`` computes bits
  per byte, accuracy and calibration by topic; ``topics.py`` reads the held-out texts of the topics.
- ``text_generation.py`` measures the variety, repetition and readability of texts that a model writes.
- ``harness/`` runs the benchmarks of lm-evaluation-harness; the names of benchmarks are in ``harness/names.py``.

There is no table of measurements: `quintet.train.evaluation` calls them during a run, and `quintet.cli.evaluate` after
it. Metrics of piano music are in `quintet.piano.metrics`; the validation loss is in `quintet.train.validation`.
"""
