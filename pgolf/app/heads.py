"""What the comment at the head of a file of the configuration says."""

from pathlib import Path

NEEDS = "Needs "


def head_comment(path: Path) -> str:
    """The comment at the head of a file as one line."""
    lines = []
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def company(path: Path) -> list[str]:
    """The overrides without which an option is refused: the words after `Needs` in its head, as far as they assign.

    `# ... Needs train/averaging=last quant.coder=rans; best with ...` gives the two.
    """
    _, found, rest = head_comment(path).partition(NEEDS)
    words: list[str] = []
    for word in rest.split() if found else ():
        if "=" not in word:
            break
        words.append(word.rstrip(".,;:"))
        if words[-1] != word:
            break
    return words
