"""Passes over a model: capture, edits, generation, scoring, patching, the key/value cache."""
