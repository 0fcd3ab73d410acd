"""Which units stay: scores and ratios, or a target, become a plan."""
