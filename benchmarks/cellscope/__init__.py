"""An experiment that compares cost models of a fleet, CellScope's among them."""
