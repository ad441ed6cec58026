"""The parts of the ``taskqueue`` command. Nothing here is public but what the command prints and returns."""
