"""From the name of a model to a folder that opens: found, checked, de-quantised, merged. Nothing in it is ever run."""
