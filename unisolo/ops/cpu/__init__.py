"""Twins of operations in `unisolo.ops` for the CPU; chosen by `unisolo.ops.backend`.

A CPU need not be asked to wait: they look at values, and skip what cannot change the result.
"""
