"""Conversations on a stream."""
