"""The explicit absent part: what every `none.yaml` names."""


def absent() -> None:
    """Return None: the part is not there. It owns no parameter, no buffer and no random draw."""
    return None
