"""Every model that the tests build: texts, topologies, transformers, random graphs."""
