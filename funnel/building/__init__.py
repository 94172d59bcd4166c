"""Building an index: read the corpus once, adapt, order, store, index a prefix, calibrate, commit."""
