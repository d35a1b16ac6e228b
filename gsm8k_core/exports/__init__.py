"""A model for other programs: a GGUF file for llama.cpp, a Modelfile for Ollama. Numbers and names, no framework."""
