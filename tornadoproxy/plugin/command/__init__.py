"""A plugin's own commands, and the tables that they print."""
