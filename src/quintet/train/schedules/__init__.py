"""Schedules that other libraries define, and the one that follows the validation loss."""
