"""From a forecast to a decision: limit, situation, move, caps."""
