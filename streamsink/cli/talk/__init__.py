"""Inside ``streamsink chat``: what is asked, how answers are shown, the commands between them."""
