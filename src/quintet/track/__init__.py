"""Trackers, to which metrics and samples go: one small protocol, and all trackers of a run as one."""
