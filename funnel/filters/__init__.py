"""Filters: conditions over metadata, run in SQLite over a side cache of its columns."""
