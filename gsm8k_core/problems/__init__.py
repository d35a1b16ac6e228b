"""From a word problem to the rows of an update: read, prompted, masked, counted, batched."""
