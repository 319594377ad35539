"""A page in the browser where a person hears what a model of piano music writes."""
