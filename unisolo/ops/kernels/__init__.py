"""Triton twins of operations in `unisolo.ops`; chosen by `unisolo.ops.backend`.

Nothing here is imported before a tensor needs it: Triton is optional.
"""
