"""The benchmarks of EleutherAI's lm-evaluation-harness on a model of Quintet.

Only ``model`` and ``tasks`` need the library (the `eval` extra), so that the rest is cheap to import.
"""
