"""DeepSpeed as the engine of a run: its settings, its steps, and the values that it keeps in parts."""
