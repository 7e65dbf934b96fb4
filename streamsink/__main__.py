"""``python -m streamsink``: the command line."""

from streamsink.cli.main import main

main()
