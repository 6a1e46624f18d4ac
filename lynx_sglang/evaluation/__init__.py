"""``lynx-sglang eval`` measures the losses of a server at fixed shares, budgets and demands."""
