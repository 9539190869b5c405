"""The parts of one run: module, recorder, record, identity."""
