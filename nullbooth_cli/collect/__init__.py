"""Recording: which tensors a model gives its projections, and where they go."""
