"""The backends that come with taskqueue. Import each from its own module."""
