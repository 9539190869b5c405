"""Inside one run: module, recorder, record, identity."""
