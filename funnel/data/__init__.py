"""Corpora, queries and documents: everything that comes in from outside.

This package knows neither the index nor the plans: it turns files, iterables and arrays into
`Document`s and unit vectors, and texts into vectors.
"""
