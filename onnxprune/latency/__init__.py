"""Latency tables, and a model of the latency of what is left of a network: measured in context, on variants of it."""
