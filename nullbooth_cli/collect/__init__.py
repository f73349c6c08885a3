"""Recording: which tensors the projections of a model receive, and where they go."""
