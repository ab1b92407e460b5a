"""Benchmarks: each module measures one thing against the algorithm it replaces, after checking that both agree.

`python -m tests.benchmarks` runs them all and writes results.json; `--table` prints the table that the README
publishes. Nothing is asserted about speed in a timed test: machines are noisy.
"""
