"""Run files: schema, loading, and messages on mistakes. It imports no other part of Quintet.

- `schema` has the top of a run file; each of its sections is a file of the section's name, and `section` the base class
of all of them. `checks` has the contradictions between sections. - `load` reads files and overrides into a `RunConfig`,
by `read` (one YAML file), `merge`, `hydra` (defaults lists), `interpolate` (``${…}``), `dialects` (translation) and
`errors` (messages); `provenance` is the origin of each value. - `describe` lists all keys of a schema, for `reference`
(pages), `json_schema` (editors), `find` (`quintet explain`) and `dump` (writing YAML, with `secrets` removed).
"""
