"""The benchmarks of EleutherAI's lm-evaluation-harness on a model of Quintet, run by ``run.py``.

A benchmark's name (``names``) leads to its tasks in the harness (``library``, ``tasks``) with items from the hub or
from files (``items``). The harness asks the model (``model``) for log-probabilities and texts; requests become ids
(``texts``), which are read in batches (``scoring``). Only ``library`` imports ``lm_eval``, of the `eval` extra.
"""
