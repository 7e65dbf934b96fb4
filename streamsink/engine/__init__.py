"""A stream at work: what it needs of a context, and what a person holds in hand."""
