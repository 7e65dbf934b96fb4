"""A model's file: what it says, what it needs, and what it lets a stream do."""
