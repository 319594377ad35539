"""Piano music: MIDI files, notes, tokens, tasks, pictures and sound."""
