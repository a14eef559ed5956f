"""Scripted peers that speak the protocols faithfully, for the demo, tests and plugin authors."""
