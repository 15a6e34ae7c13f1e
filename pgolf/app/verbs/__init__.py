"""One file per verb of the command line, each with `main(arguments) -> exit status`."""

SUMMARIES = {
    "eval": "score a finished run again, or from another stage on, without training",
    "data": "prepare, verify or describe a corpus; train a tokenizer",
    "records": "the presets, with published figures and parity evidence",
    "inspect": "layer plan, parameters, byte estimate and schedules of a configuration",
    "audit": "the validity probes, on a run or on a configuration",
    "compare": "statistics of runs over seeds and over documents",
    "report": "tables, plots and one HTML page from run directories",
    "verify": "equivalence of two configurations; a smoke test of every option",
    "plan": "jobs x seconds x price of a study, before it starts",
    "doctor": "what this machine can run, and the command that mends what is missing",
}


def listing() -> str:
    """The verbs with one line each, for `pgolf --help`."""
    return "\n".join(f"  {verb:<9} {summary}" for verb, summary in SUMMARIES.items())
