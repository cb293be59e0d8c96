"""Rows to batches with targets."""
