"""What the tests of the kit share."""

from taskqueue_conformance.suite import required_checks

# Before pytester takes its snapshot of the imported modules: what it drops would be registered a second time.
required_checks()
