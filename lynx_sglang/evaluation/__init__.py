"""``lynx-sglang eval``: what a running server's answers lose at fixed budgets and demands."""
