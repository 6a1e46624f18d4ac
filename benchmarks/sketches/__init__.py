"""An experiment: low-rank sketches stand in for lost experts. No server uses them."""
