"""The checks of the suite, one module for each group of requirements in a layer."""
