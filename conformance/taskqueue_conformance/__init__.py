"""The conformance suite for backends of taskqueue: ``pytest --conformance=MODULE:FACTORY``."""
