"""Nouns and decisions: pure values and functions, no await, no I/O, no clock, no randomness of their own."""
