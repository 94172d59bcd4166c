"""Searching under a filter: the allowed rows, exact search over them, plans measured on them."""
