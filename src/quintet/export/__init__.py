"""Export of trained models to other software.

- ``huggingface.py`` writes a run's model and tokenizer as a folder that transformers loads, with a model card. It asks
  `quintet.model.hf.weights` for the family that the model is equal to.
- ``modeling_quintet.py`` is copied into such a folder if there is no such family: our transformer as classes of
  transformers, which need `pip install quintet`.

Elsewhere: `quintet.model.hf.table` has the table of families, `quintet.tokenize.transformers_folder` writes the
tokenizer, `quintet.data.formats` writes samples for other frameworks, and `quintet.cli.export` has the formats that
`quintet export` offers.
"""
