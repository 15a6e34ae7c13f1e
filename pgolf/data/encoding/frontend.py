"""The text front end: what turns a document into token ids with their bytes of original text, and back."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pgolf.data.encoding.byte_tokenizer import ByteTokenizer
from pgolf.data.encoding.bytes import SurfaceWalk, character_costs, charge, code_points
from pgolf.data.encoding.normalizer import Normalizer
from pgolf.data.encoding.pretokens import CutRule, Encoded, Pretokens, cut_rule, join, pack
from pgolf.data.encoding.sentencepiece_model import Tokenizer
from pgolf.data.encoding.tokenizer import TokenizerConfig
from pgolf.data.encoding.transform import Transform, load_transform
from pgolf.errors import UserError
from pgolf.files import write_bytes

MODEL_FILE = "tokenizer.model"
BATCH_CHARACTERS = 1 << 20  # Looked up together; bounds the memory of the lookup.
Malformed = Literal["refuse", "keep"]


class FrontEnd:
    """A transform (or none) and a tokenizer.

    Attributes:
        vocab_size: number of ids.
        lossless: decode(encode(text)) == text for every text that has a UTF-8 form.
    """

    def __init__(self, transform: Transform | None, tokenizer: Tokenizer | ByteTokenizer):
        self.transform, self.tokenizer = transform, tokenizer
        self.vocab_size: int = tokenizer.vocab_size
        self.lossless: bool = tokenizer.normalization == "lossless"
        self.operators: tuple[str, ...] = () if transform is None else transform.operators

    def __reduce__(self) -> tuple[Any, ...]:
        return FrontEnd, (self.transform, self.tokenizer)

    def _transformed(self, text: str) -> str:
        return text if self.transform is None else self.transform.encode(text)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS. ValueError for a lone surrogate, which has no UTF-8 form."""
        return self.tokenizer.encode(self._transformed(text))

    def encode_documents(self, texts: Sequence[str]) -> Encoded:
        """Encode many documents, each distinct stretch of text once (see pgolf.data.encoding.pretokens).

        ValueError for a lone surrogate; UserError when a token would stand for more than 65,535 bytes.
        """
        parts: list[Encoded] = []
        batch: list[tuple[str, str]] = []
        room = BATCH_CHARACTERS
        for text in texts:
            core = None if self._rule is None else self._rule.core(text)
            if core is None or room < 0:
                parts.append(self._encode_batch(batch))
                batch, room = [], BATCH_CHARACTERS
            if core is None:
                parts.append(self.encode_whole(text))
            else:
                batch.append((text, core))
                room -= len(core)
        return join([*parts, self._encode_batch(batch)])

    def encode_whole(self, text: str) -> Encoded:
        """Encode one document without cutting it: what `encode_documents` must equal, token by token."""
        counts = self._charge_whole(text, whole=True)
        return pack(self.encode(text), counts, [len(counts)])

    def surface_bytes(self, text: str) -> npt.NDArray[np.int64]:
        """int64 [tokens of `text`]; the bare surface rule of the published sidecars, which charges nothing for
        whitespace that the normaliser strips from the ends."""
        return self._charge_whole(text, whole=False)

    def _charge_whole(self, text: str, whole: bool) -> npt.NDArray[np.int64]:
        transformed = self._transformed(text)
        costs = character_costs(transformed, self.operators)
        if isinstance(self.tokenizer, ByteTokenizer):
            return np.repeat(costs > 0, character_costs(transformed)).astype(np.int64)
        form, offsets = (transformed, None) if self.lossless else self._normalizer.normal_form(transformed)
        ids = np.array(self.tokenizer.encode(transformed), np.int64)
        return charge(ids, self._piece_sizes, costs, form, offsets, whole=whole)

    def _encode_batch(self, documents: Sequence[tuple[str, str]]) -> Encoded:
        """Encode (text, its core) pairs by looking up the pretokens of the cores."""
        text = "".join(core for _, core in documents)
        ends = np.cumsum([len(core) for _, core in documents], dtype=np.int64)
        if not text or self._rule is None:
            return pack([], [], np.zeros(len(documents), np.int64))
        borders = np.zeros(len(text) + 1, np.bool_)
        codes = code_points(text)
        borders[1:-1] = self._rule.cuts(codes)
        borders[ends] = True
        borders[0] = False
        pretoken_ends = np.flatnonzero(borders)
        found = self._pretokens.lookup(text, codes, pretoken_ends)
        tokens_before = np.concatenate([[0], np.cumsum(found.lengths)])
        document_ends = tokens_before[np.searchsorted(pretoken_ends, ends, side="right")]
        lengths = np.diff(document_ends, prepend=0)
        if self.lossless:
            return Encoded(found.ids, found.token_bytes, lengths)
        counts = found.token_bytes.astype(np.int64)
        for (original, core), end, length in zip(documents, document_ends.tolist(), lengths.tolist(), strict=True):
            if len(core) < len(original) and length:
                start = len(original) - len(original.lstrip(self._rule.spaces))
                counts[end - length] += len(original[:start].encode())
                counts[end - 1] += len(original[start + len(core) :].encode())
        return pack(found.ids, counts, lengths)

    def _encode_pretokens(self, pretokens: Sequence[str]) -> Encoded:
        """Encode distinct pretokens (see `cut_rule` for what is known about them)."""
        assert isinstance(self.tokenizer, Tokenizer)
        texts = [self._transformed(pretoken) for pretoken in pretokens]
        forms, offsets, model = texts, None, self.tokenizer
        if not self.lossless:
            forms, offsets = self._normalizer.inner_forms(texts)
            model = self._normalizer.sibling
        batch = model.encode_batch(forms)
        ids = np.fromiter(chain.from_iterable(batch), np.int64)
        costs = character_costs("".join(texts), self.operators)
        return pack(ids, charge(ids, self._piece_sizes, costs, "".join(forms), offsets), list(map(len, batch)))

    @cached_property
    def _normalizer(self) -> Normalizer:
        assert isinstance(self.tokenizer, Tokenizer)
        return Normalizer(self.tokenizer)

    @cached_property
    def _rule(self) -> CutRule | None:
        if isinstance(self.tokenizer, ByteTokenizer):
            return None
        return cut_rule(self.transform, self.tokenizer, None if self.lossless else self._normalizer)

    @cached_property
    def _pretokens(self) -> Pretokens:
        return Pretokens(self._encode_pretokens)

    @cached_property
    def _walk(self) -> SurfaceWalk:
        return SurfaceWalk(self.tokenizer.piece_bytes, self.operators)

    @cached_property
    def _piece_sizes(self) -> npt.NDArray[np.int64]:
        return np.array(list(map(len, self.tokenizer.piece_bytes)), np.int64)

    @cached_property
    def _piece_text(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """The UTF-8 of all pieces one after another, and where each begins."""
        joined = np.frombuffer(b"".join(self.tokenizer.piece_bytes), np.uint8)
        return joined, np.cumsum(self._piece_sizes) - self._piece_sizes

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer], *, malformed: Malformed = "refuse") -> str:
        """The text of `ids`; control ids decode to nothing.

        Args:
            malformed: "refuse" raises CaseOpsError where an operator does not parse; "keep" leaves such operators
                visible, for what a model wrote.
        """
        text = self.tokenizer.decode(ids)
        return text if self.transform is None else self.transform.decode(text, malformed=malformed)

    def decode_documents(self, ids: npt.NDArray[np.uint16], lengths: npt.NDArray[np.int64]) -> list[str]:
        """The text of each document; `ids` and `lengths` as in Encoded."""
        ends = np.cumsum(lengths)
        if not self.lossless:
            return [self.decode(ids[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
        joined, starts = self._piece_text
        sizes = self._piece_sizes[ids]
        spelled = np.cumsum(sizes)
        index = np.repeat(starts[ids] - (spelled - sizes), sizes)
        index += np.arange(len(index))
        text = joined[index].tobytes()
        cuts = np.concatenate([[0], spelled])[np.concatenate([[0], ends])].tolist()
        documents = [text[a:b].decode(errors="replace") for a, b in pairwise(cuts)]
        return documents if self.transform is None else list(map(self.transform.decode, documents))

    def count_bytes(self, ids: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        """Bytes of original text of each token, from the ids alone, by another path than `encode_documents`.

        A walk over the characters of the surfaces (see pgolf.data.encoding.bytes). A control id costs nothing and ends
        the document. ValueError when the front end is not lossless: surfaces are then not in the ids.
        """
        if not self.lossless:
            raise ValueError("the bytes cannot be told from the ids: the tokenizer normalises text")
        if isinstance(self.tokenizer, ByteTokenizer):
            return self.tokenizer.count_bytes(ids, self.operators)
        return self._walk.count(ids)

    def piece(self, token: int) -> str:
        """A token in print."""
        return self.tokenizer.piece(token)

    def description(self) -> dict[str, Any]:
        """JSON values for the manifest; `load` checks and uses them."""
        return {
            "transform": None if self.transform is None else self.transform.identity(),
            "tokenizer": {
                "kind": self.tokenizer.kind,
                "sha256": self.tokenizer.sha256,
                "vocab_size": self.vocab_size,
                "normalization": self.tokenizer.normalization,
            },
        }

    def save(self, directory: Path) -> None:
        """Write tokenizer.model into `directory`, where the tokenizer has a model."""
        if isinstance(self.tokenizer, Tokenizer):
            write_bytes(directory / MODEL_FILE, self.tokenizer.model)

    @classmethod
    def load(cls, directory: Path, description: dict[str, Any]) -> "FrontEnd":
        """The front end that `save` and `description` wrote; UserError when the file is not the described one."""
        transform = load_transform(description["transform"])
        expected = description["tokenizer"]
        if expected["kind"] not in (ByteTokenizer.kind, Tokenizer.kind):
            raise UserError(f"{directory} names the tokenizer kind {expected['kind']!r}, which pgolf does not know.")
        of_bytes = expected["kind"] == ByteTokenizer.kind
        front_end = cls(transform, ByteTokenizer() if of_bytes else Tokenizer.load(directory / MODEL_FILE))
        found = front_end.description()["tokenizer"]
        for key, value in expected.items():
            if found.get(key) != value:
                where = directory if of_bytes else directory / MODEL_FILE
                raise UserError(
                    f"{where} is not the tokenizer of the manifest: {key} is {found.get(key)}, not {value}."
                )
        return front_end


def train_front_end(transform: Transform | None, tokenizer: TokenizerConfig, texts: Iterable[str]) -> FrontEnd:
    """Train the tokenizer on transformed `texts` (original training documents, read once)."""
    if transform is None:
        return FrontEnd(None, tokenizer.train(texts))
    return FrontEnd(transform, tokenizer.train(map(transform.encode, texts), transform.operators))
