"""Whether prepared data are what a configuration asks for. Nothing is detected: what differs is refused."""

from typing import Any

MEANINGS = {
    "transform": "tokens would be read as other text, and charged other bytes",
    "tokenizer": "ids would mean other text",
    "split": "other documents would be held out, and scores could not be compared",
    "duplicates": "other documents would be held out, and scores could not be compared",
}


def differences(manifest: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """One sentence for each part in which the data of `manifest` are not those of `recipe` (DataConfig.recipe()).

    The source is not compared: a run may go on with the documents it began with after an installation changed them.
    Nor is the version of the tokenizer's library.
    """
    prepared = manifest.get("recipe")
    if prepared is None:
        return ["the data were downloaded, the configuration prepares its own"]
    found = []
    for key, meaning in MEANINGS.items():
        here, wanted = _comparable(prepared.get(key)), _comparable(recipe.get(key))
        if here != wanted:
            found.append(
                f"data.{key}: prepared with {_short(here)}, the configuration says {_short(wanted)}; {meaning}"
            )
    return found


def _comparable(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "sentencepiece"} if isinstance(value, dict) else value


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={one}" for key, one in value.items() if one is not None)
    return "none" if value is None else str(value)
