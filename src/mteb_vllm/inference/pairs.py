"""Which pairs are too long for an engine's context, and what is left of those.

A pair that is too long loses the end of its document: never the query, and never what a template says behind the document
(vLLM itself cuts the longer of the two, and a rendered template at its end). So those pairs are cut here, token by token as
`truncation="only_second"` does in transformers, and given to vLLM as tokens. Documents are tokenised for it only where their
bytes could exceed the room that the query leaves: a token has one byte at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines.base import Engine, LongPair
from mteb_vllm.errors import TemplateError
from mteb_vllm.inference.encoding import shorten
from mteb_vllm.models.score_templates import render_pair

# Where a pair is read as one text, tokens can merge or split where its parts meet.
_SEAM = 8
_MARK = "\ue0d0the document\ue0d1"


class PairTokenizer:
    """Tokenises pairs as an engine does.

    Args:
        engine: An open engine that scores pairs.
        template: The jinja template that they are read through; None where the model joins the two texts itself.
    """

    def __init__(self, engine: Engine, template: str | None) -> None:
        self.limit = engine.max_model_len
        self.template = template
        self.tokenizer = engine.tokenizer
        self.joins_pairs = template is not None or not engine.separates_pairs

    def fit_queries(self, queries: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64], list[bool]]:
        """The room that each query leaves for a document; a query that leaves none is cut to half of the context.

        Args:
            queries: The different queries.

        Returns:
            the queries, cut where needed; tokens left for a document, shape (n_queries,); which ones were cut.

        Raises:
            TemplateError: if the template alone is longer than the context.
        """
        texts = list(queries)
        room = self._document_room(texts)
        cut = [left < 1 for left in room]
        if any(cut):
            whole = int(self._document_room([""])[0])
            if whole < 2:
                raise TemplateError(f"the score template alone is longer than the context of {self.limit} tokens")
            for at in np.flatnonzero(cut):
                texts[at] = self._first_tokens(texts[at], whole // 2)
            room = self._document_room(texts)
        return texts, room, cut

    def lengths(self, documents: Sequence[str]) -> npt.NDArray[np.int64]:
        """Tokens of each document by itself, without special tokens; at least the context's of one that exceeds it."""
        shorter = [shorten(text, self.tokenizer, self.limit) for text in documents]
        tokens = self._ids(shorter, add_special_tokens=False)
        return np.array([len(ids) for ids in tokens], dtype=np.int64)

    def count(self, queries: Sequence[str], documents: Sequence[str]) -> list[int]:
        """Tokens of each pair as the engine reads it, special tokens included, nothing cut."""
        if self.joins_pairs:
            pairs = zip(queries, documents, strict=True)
            read = [document.join(self._text_around_document(query)) for query, document in pairs]
            return [len(ids) for ids in self._ids(read, add_special_tokens=True)]
        return [len(ids) for ids in self.tokenizer(list(queries), list(documents), verbose=False)["input_ids"]]

    def may_exceed(self, lengths: npt.NDArray[np.int64], room: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which documents may be too long for the room that their queries leave."""
        return lengths + (_SEAM if self.joins_pairs else 0) > room

    def cut(self, query: str, document: str) -> LongPair:
        """A pair, cut to the context if it is too long."""
        document = shorten(document, self.tokenizer, self.limit)
        return self._truncate_text(query, document) if self.joins_pairs else self._truncate_pair(query, document)

    def _truncate_pair(self, query: str, document: str) -> LongPair:
        # As a batch of one: a single call leaves out a second text that is empty, and its separator.
        read = self.tokenizer([query], [document], truncation=False, verbose=False)
        inside = [at for at, side in enumerate(read.sequence_ids(0)) if side == 1]
        return self._truncate_document({key: rows[0] for key, rows in read.items()}, inside)

    def _truncate_text(self, query: str, document: str) -> LongPair:
        head, tail = self._text_around_document(query)
        read = self.tokenizer(head + document + tail, truncation=False, verbose=False, return_offsets_mapping=True)
        begin, end = len(head), len(head) + len(document)
        inside = [at for at, (start, stop) in enumerate(read["offset_mapping"]) if begin <= start < stop <= end]
        return self._truncate_document(read, inside)

    def _truncate_document(self, read: Mapping[str, Sequence[int]], inside: Sequence[int]) -> LongPair:
        """A tokenised pair without as many of its document's last tokens (`inside`) as are too many."""
        tokens = list(read["input_ids"])
        excess = max(len(tokens) - self.limit, 0)
        if len(inside) < excess:
            raise TemplateError(
                f"a pair cannot be cut to the context of {self.limit} tokens: its template leaves no room"
            )
        last = inside[-1] + 1 if inside else 0
        types = read.get("token_type_ids")
        kept = [*range(last - excess), *range(last, len(tokens))]
        segments = None if types is None else [types[at] for at in kept]
        return LongPair([tokens[at] for at in kept], _first_length(segments), excess > 0)

    def _document_room(self, queries: Sequence[str]) -> npt.NDArray[np.int64]:
        if self.joins_pairs:
            taken = self._ids(["".join(self._text_around_document(query)) for query in queries], add_special_tokens=True)
            return np.array([self.limit - len(ids) for ids in taken], dtype=np.int64)
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        taken = self._ids(list(queries), add_special_tokens=False)
        return np.array([self.limit - len(ids) - special for ids in taken], dtype=np.int64)

    def _text_around_document(self, query: str) -> tuple[str, str]:
        """What stands before and behind the document in a pair that is read as one text."""
        if self.template is None:
            return query, ""
        head, mark, tail = render_pair(self.tokenizer, self.template, query, _MARK).rpartition(_MARK)
        if not mark or _MARK in head:
            raise TemplateError("the score template must hold the document once, as it is")
        return head, tail

    def _ids(self, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(
            texts, add_special_tokens=add_special_tokens, truncation=False, verbose=False
        )["input_ids"]
        return ids

    def _first_tokens(self, text: str, count: int) -> str:
        offsets = self.tokenizer(
            text, add_special_tokens=False, truncation=False, verbose=False, return_offsets_mapping=True
        )["offset_mapping"]
        return text[: offsets[count - 1][1]] if len(offsets) > count else text


def _first_length(types: Sequence[int] | None) -> int | None:
    # What vLLM passes on of `token_type_ids`: zeros, then ones.
    return None if types is None else types.index(1) if 1 in types else len(types)
