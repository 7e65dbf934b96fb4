"""llama.cpp behind `streamsink.engine.context`: the only importer of ``llama_cpp``."""
