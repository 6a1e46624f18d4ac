"""The room that SGLang calls: flags, hooks, refusals and the states of a server."""
