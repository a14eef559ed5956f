"""The plugin contract, and the calls to plugins."""
