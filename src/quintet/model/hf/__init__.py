"""Models of the transformers library, and conversion of our transformer's weights to and from its families.

A model with ``model: {kind: huggingface}``:

- ``loading.py`` builds it: settings, weights, LoRA adapters, gradient checkpointing, and the errors of the library.
- ``pretrained.py`` wraps it in the interface of our own transformer, with its caches.
- ``trial.py`` finds out whether it reads packed, padded or cached texts correctly, on a model from ``small_copy.py``.
- ``count.py`` counts its parameters and FLOPs without weights.

Our transformer with the weights of a family, such as Llama:

- ``table.py`` has one entry for each family (`FAMILIES`): the names of its settings and weights.
- ``settings.py`` converts between the section `model` and `config.json`; ``weights.py`` converts the weights.

``files.py`` finds and reads the files of a checkpoint for both.
"""
