"""From sources to batches, in NumPy and without torch.

The way of a document, which ``prepare.py`` walks for all sources of a run:

1. ``sources/``: a `Reader` for each kind of source (``base.py``; the table is in ``__init__.py``) finds its files
   (``files.py``) and indexes them. It cuts the index into work units and reads their documents: ``text.py``,
   ``lines.py``, ``tables.py``, ``token_files.py``, ``megatron.py``, ``music.py``; rows become documents in ``rows.py``
   and, by a template, in ``templates.py``; ``reading.py`` opens and decompresses the bytes.
2. ``build.py`` makes the token store of an index, a tokenizer and the cleaning, one shard for each work unit.
   ``shards.py`` reads, cleans (``cleaning.py``), encodes and writes the documents of a unit; ``locks.py`` lets several
   processes share a folder.
3. ``store.py`` maps the finished store into memory. ``manifest.py`` describes its files, ``verify.py`` checks them.

The way of a batch:

1. ``divide.py`` divides the stores once: ``split.py`` holds documents out, ``contamination.py`` finds their copies, and
   ``samples.py``, ``packing.py`` or ``note_samples.py`` cut what remains into samples.
2. ``batch.py`` gives the batch of a step: ``mixture.py`` says which sample of which source is at each position, by
   ``permutation.py``, and the samples are read from the store.

``describe.py`` reports on stores, and ``formats.py`` writes samples in the formats of other frameworks.
"""
