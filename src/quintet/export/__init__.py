"""Export of trained models to other software."""
