"""Seeded fuzzing: odd command lines and damaged files, each held to what a user may expect.

The short one is part of the test suite (test_fuzz.py). The longer one: ``python -m tests.fuzz --cases 5000 --seed 7``.
"""
