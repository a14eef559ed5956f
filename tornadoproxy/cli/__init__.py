"""The commands and their text."""
