"""What is left of an index after a kill or a failing disk at every point of every operation."""
