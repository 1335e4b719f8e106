"""Losses, the order of the rows, and one loop on transformers.Trainer."""
