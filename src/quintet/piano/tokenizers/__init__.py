"""Tokenizers of notes, one class for each kind. The table of kinds is in `quintet.tokenize.registry`.

- ``base.py`` has the protocol `NoteTokenizer`, the base class for tokens with names (`NamedTokens`), and what the
  kinds share: free ids for special names, rounding of times, and the range of a piano.
- ``exponential.py`` has note-on and note-off events with time steps of powers of two (kind `exponential_time`).
- ``miditok.py`` has the tokenizers of the MidiTok library (kind `miditok`).
- ``bpe.py`` trains byte-pair encoding on the ids of another note tokenizer (kind `note_bpe`).

The configs are in `quintet.config.tokenizer`. `with_special` adds the names of tasks, data sets and composers.
"""
