"""``python -m streamsink``: the command line."""

from streamsink.cli.start import main

main()
