"""Models of the plant and of quality, learned online from observations."""
