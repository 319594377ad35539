"""The outcome of a run, or of several, for a person to read."""
