"""Benchmarks of gradflow beside its peers; see README.md in this folder."""
