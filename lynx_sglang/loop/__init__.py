"""The loop of a decode step, on any device: observe, decide, select, report."""
