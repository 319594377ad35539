"""SuperTinyLanguageModels (STLM): the files of `Non-code/documentation/README.md`, and those before and after it."""
