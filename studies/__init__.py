"""Tables of many runs, and of what the code says of itself."""
