"""The errors that are meant for the person at the keyboard: one sentence that says what is wrong, where, and what
would be right."""


class UserError(Exception):
    """Something the user can mend. The command line prints the sentence without a traceback and exits with
    `exit_status`."""

    exit_status = 1


class ConfigError(UserError):
    """The configuration was refused before any work. `problems` holds one sentence each."""

    exit_status = 2

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(problems))
