"""One stream, without engine, lock or I/O: what it keeps and evicts, and where its tokens stand."""
