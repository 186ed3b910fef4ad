"""Runs as experiments: queued, executed by processes of their own, swept, scheduled, and repeated."""
