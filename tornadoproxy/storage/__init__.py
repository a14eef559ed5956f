"""What plugins keep."""
