"""The plant simulates or plays back a server's decode steps for controllers."""
