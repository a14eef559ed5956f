"""What is on the wire, without I/O."""
