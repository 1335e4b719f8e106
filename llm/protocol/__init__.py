"""What the paper's experiments are: figures, their stages, presets, the graph."""
