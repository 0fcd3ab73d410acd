"""Sparse weights: which layers can have them, which weights go, and the file that holds what stays."""
