"""The recipe, and all options together."""
