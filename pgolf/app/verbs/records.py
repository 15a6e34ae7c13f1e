"""`pgolf records`: see pgolf.report.records."""


def main(arguments: list[str]) -> int:
    """Run the verb; gives the exit status."""
    from pgolf.report import records

    return records.main(arguments)
