"""One measurement: ``python measure.py MODULE FUNCTION ARGUMENTS``, with the arguments in JSON. Prints JSON."""

import importlib
import json
import sys


def main() -> None:
    """Do what the command line says."""
    module, function, arguments = sys.argv[1:]
    found = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    if found is not None:
        sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
