"""How plugins are found, and their hooks checked."""
