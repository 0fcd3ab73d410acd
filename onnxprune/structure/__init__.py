"""What can be removed together, and removing it."""
