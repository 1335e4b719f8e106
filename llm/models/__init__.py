"""A policy or reward model, and its one forward: prompts run once, logits where they are read."""
