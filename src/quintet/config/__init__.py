"""The run file: its schema, how it is loaded, and how its mistakes are explained. Knows no other part of Quintet."""
