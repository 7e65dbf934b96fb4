"""streamsink within other libraries."""
