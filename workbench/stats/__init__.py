"""Estimates with their intervals: bootstrap over clusters, Wilson, differences of rates, correlations."""
