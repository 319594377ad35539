"""piano-gpt: GPT-2 on piano music (docs/configuration.md of Nospoko/piano-gpt)."""
