"""Stages on this machine, under torchrun, on a cluster: one at a time each, killed or not."""
