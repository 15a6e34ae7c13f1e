"""Reading finished runs: statistics, comparison, plots, the HTML page, the published records.

Everything here reads run directories and nothing else of pgolf but its errors and file helpers.
"""
