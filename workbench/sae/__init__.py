"""Sparse autoencoders: every published format read, trained, and what their features mean."""
