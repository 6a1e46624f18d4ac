"""Decision log and its replay."""
