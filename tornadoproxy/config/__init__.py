"""Text into settings: parsers, sources, and what settings there are."""
