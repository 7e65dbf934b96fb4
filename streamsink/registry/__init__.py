"""Models by name: where each comes from, which are here, and how they get here.

``catalog`` says which names there are, ``files`` turns what a user typed into a file, ``fetch``
brings a model's file here, ``edit`` writes a name into the user's own registry. Nothing here
prints, and no native library is loaded.
"""
