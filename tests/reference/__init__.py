"""Slow, readable twins of the fast code, and what tests share. None of it is shipped."""
