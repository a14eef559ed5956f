"""Settings: their parsers, their sources, and the core's own."""
