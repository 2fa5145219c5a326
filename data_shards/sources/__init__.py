"""Where studies come from. One module per kind of source."""
