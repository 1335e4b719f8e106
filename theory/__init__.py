"""Exact simulator of preference fine-tuning on small token trees (JAX, float64)."""
