"""aloe: from an open base model to an aligned, evaluated, red-teamed healthcare LLM, by one recipe file."""

__version__ = "0.1.0"
