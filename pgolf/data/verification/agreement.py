"""Whether prepared data are what a configuration asks for, and whether a manifest agrees with itself.

Nothing is detected: what differs is refused.
"""

from typing import Any

from pgolf.data.validation import BOS_ID

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
    here, wanted = manifest["front_end"]["transform"], recipe.get("transform")
    if here != wanted and prepared.get("transform") == wanted:
        found.append(f"data.transform: the tokens are of {_short(here)}, the configuration says {_short(wanted)}")
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


def contradictions(manifest: dict[str, Any]) -> list[str]:
    """One sentence for each two parts of a manifest that cannot both be true (a digest covers an edit that was signed
    again; this does not trust it). KeyError or TypeError where a part is missing."""
    front_end, recipe = manifest["front_end"], manifest.get("recipe") or {}
    tokenizer, made = front_end["tokenizer"], recipe.get("tokenizer") or {}
    accounting = manifest["byte_accounting"]
    claims = {
        "transform": (front_end["transform"], recipe.get("transform", front_end["transform"])),
        "vocab_size": (tokenizer["vocab_size"], manifest["vocab_size"]),
        "vocab_size of the recipe": (tokenizer["vocab_size"], made.get("vocab_size", tokenizer["vocab_size"])),
        "normalization": (tokenizer["normalization"], made.get("normalization", tokenizer["normalization"])),
        "lossless": (tokenizer["normalization"] == "lossless", manifest["lossless"]),
        "split": ({key: manifest["split"].get(key) for key in recipe.get("split", {})}, recipe.get("split", {})),
        "id of BOS": (BOS_ID, manifest["bos_id"]),
        "number of byte count files": (
            len(manifest["splits"]["val"]["files"]) if accounting == "sidecar" else 0,
            len(manifest["byte_files"]),
        ),
    }
    found = [] if recipe or manifest.get("origin") else ["it says neither what was prepared nor what was downloaded"]
    found += [f"{name}: {_short(one)} and {_short(other)}" for name, (one, other) in claims.items() if one != other]
    if accounting != "sidecar" and (recipe or front_end["transform"] is not None):
        found.append("the text was transformed or prepared here, and its bytes are to come from a table for plain text")
    return found
