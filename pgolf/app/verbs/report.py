"""`pgolf report`: see pgolf.report.report."""


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    from pgolf.report import report

    return report.main(arguments)
