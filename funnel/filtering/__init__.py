"""A condition over metadata, compiled to a mask of the rows that may be returned."""
