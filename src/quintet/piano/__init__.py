"""Piano music: MIDI files, notes, tokens, tasks, pictures and sound.

- ``notes.py`` has `Notes`, the notes of a piece as arrays, and their form in a token store. Everything else uses it.
- ``midi.py`` reads and writes MIDI files; ``midi_repair.py`` mends their bytes first. ``scores.py`` reads the scores
  that come with music21.
- ``context.py`` has the tokens of a piece's data set and composer, and those around an answer.
- ``tokenizers/`` turns notes into ids and back, one class for each kind.
- ``tasks/`` splits a piece into a prompt and an answer; the table of kinds is in ``tasks/kinds.py``.
- ``metrics.py`` compares generated notes with true ones (table `DISTANCES`); ``baselines.py`` has figures without a
  model to compare with.
- ``rendering.py`` draws a piano roll and makes sound.

Elsewhere: `quintet.data.sources.music` reads sources of music, `quintet.data.note_samples` cuts them into samples, and
`quintet.evaluate.music` writes music with a model.
"""
