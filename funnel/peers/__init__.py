"""The funnel against the libraries that people use today, on the same data and threads."""
