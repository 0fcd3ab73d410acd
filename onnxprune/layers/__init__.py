"""A linear layer and its rows: the one view that recovery, importance and sparsity share."""
