"""Recording: the tensors that the projections of a model receive, and the sinks that take them."""
