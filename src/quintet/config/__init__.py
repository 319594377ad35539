"""Run files: schema, loading, and messages on mistakes.

Of the rest of Quintet it imports only `quintet.errors`, `quintet.files` and `quintet.templates`.

The schema. ``schema.py`` has the top of a run file, `RunConfig`; ``section.py`` the base class of all sections, and
`key`, which declares a key. A kind of a part is a class, and a member of the union at the end of its file.

- Sections: ``data.py``, ``tokenizer.py``, ``model.py``, ``loss.py``, ``optimizer.py``, ``schedule.py`` (also
  `dropout_schedule`), ``train.py`` (also `checkpoint`), ``trainer.py``, ``parallel.py``, ``evaluate.py``,
  ``generation.py`` (`sample`) and ``track.py``.
- Parts of `data`: ``sources.py``, ``documents.py`` (`document` of a source), ``cleaning.py`` and ``packing.py``.
- Parts of `model`: ``position.py``, ``norm.py``, ``embedding_and_head.py`` and ``sharing.py``.
- ``checks.py`` has the contradictions between sections; ``deepspeed.py`` the keys that a ds_config sets.

Loading. ``load.py`` reads files and overrides into a `RunConfig`: ``read.py`` reads one YAML file, ``merge.py`` merges
files and overrides, ``hydra.py`` composes `defaults` lists, ``interpolate.py`` resolves ``${…}``, and ``dialects/``
translates files of other frameworks. ``provenance.py`` has the origin of each value, ``errors.py`` the messages of
pydantic in the words of a user, ``keypath.py`` the paths of keys, ``names.py`` names of files, runs and repositories.

Writing and help. ``dump.py`` writes YAML, without the values that ``secrets.py`` hides. ``describe.py`` describes all
keys, for ``reference.py`` (pages), ``json_schema.py`` (editors) and ``find.py`` (`quintet explain`).
"""
