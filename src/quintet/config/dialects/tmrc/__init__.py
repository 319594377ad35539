"""TMRC: transformers on tokenized datasets of tatm (docs/training_config.rst of KempnerInstitute/tmrc)."""
