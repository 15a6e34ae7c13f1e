"""`pgolf compare`: see pgolf.report.compare."""


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    from pgolf.report import compare

    return compare.main(arguments)
