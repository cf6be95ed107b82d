"""Teach a separator."""
