"""Benchmarks: what streaming costs on this machine. They return records and never print."""
