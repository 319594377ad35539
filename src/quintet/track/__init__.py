"""Where metrics go: trackers behind one small protocol, and all trackers of a run as one."""
