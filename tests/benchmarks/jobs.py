"""The functions that the benchmarks run. In a module of their own, so that a payload names them and no more."""


async def noop(_: object = None) -> None:
    """Do nothing, with an argument that gives the payload its size."""
