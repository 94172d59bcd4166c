"""A graph over a prefix and reranks after it, against the same graph over whole rows."""
