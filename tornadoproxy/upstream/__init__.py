"""Requests to the upstream."""
