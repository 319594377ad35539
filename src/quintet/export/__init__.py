"""Trained models for other software."""
