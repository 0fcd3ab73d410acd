"""The model as a graph: its file, its shapes and what it costs."""
