"""What a run, or several, came to, for a person to read."""
