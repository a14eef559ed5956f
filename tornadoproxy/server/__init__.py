"""One running proxy: its listener, connections, logs and signals."""
