"""Readers: what people have, document by document, in bounded memory; or tokens where they lie."""
