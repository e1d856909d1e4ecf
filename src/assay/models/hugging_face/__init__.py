"""The door to and from transformers.

    config      ``AssayConfig``: a decoder's configuration, as transformers keeps configurations
    model       ``AssayForCausalLM``: a decoder that transformers can run, generate with and train
    families    how other families' configurations and weight names translate
    loading     ``load``: a folder, a GGUF file or a name on the Hub → a decoder
    saving      ``save``: a decoder → a folder that ``AutoModelForCausalLM`` opens

The modules are imported one by one where they are needed: ``config`` is read while transformers itself is still
being imported.
"""
