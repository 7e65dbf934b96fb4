"""The command line: one file per command, the only importer of typer and rich."""
