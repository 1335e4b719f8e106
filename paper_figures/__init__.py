"""Figures and the report, drawn from stored records alone."""
