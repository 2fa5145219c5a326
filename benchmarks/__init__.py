"""Performance claims as scripts: each runs us and the peer in one run and prints the ratio."""
