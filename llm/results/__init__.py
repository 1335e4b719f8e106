"""Measurements of a finished study, held against their predictions."""
