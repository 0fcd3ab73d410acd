"""Making up, without training, for what a cut has lost."""
