"""The results of a run, or of several, for people to read."""
