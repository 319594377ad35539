"""VectorLM: fine-tuning of models of the transformers library (docs/config.md of VectorInstitute/vectorlm)."""
