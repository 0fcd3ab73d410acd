"""Experiments in training sparse networks: tickets, rewinding, pruning at initialization, connectivity, supermasks."""
