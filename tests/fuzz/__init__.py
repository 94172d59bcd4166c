"""Fuzz targets: whatever bytes a file holds, only the documented errors come out."""
