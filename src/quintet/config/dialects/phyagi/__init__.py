"""PhyAGI: language models in DeepSpeed, Lightning and the transformers library (docs/guides/configuration_system.rst of
microsoft/phyagi-sdk)."""
