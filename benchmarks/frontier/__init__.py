"""The frontier measures each policy's KL and accuracy over its share of active experts."""
