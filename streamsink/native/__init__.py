"""llama.cpp behind `streamsink.backend`; nothing outside this package imports ``llama_cpp``."""
