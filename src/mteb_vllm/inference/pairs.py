"""Find the pairs that are too long for an engine's context, and truncate them.

A pair that is too long loses the end of its document, never its query or the part of a template after the document. vLLM
itself would truncate the longer of the two texts, or a rendered template at its end. So these pairs are truncated here by
tokens, as `truncation="only_second"` does in transformers, and passed to vLLM as token ids. To find them, documents are
tokenised only if their bytes could exceed the room that the query leaves, since a token has at least one byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from mteb_vllm.engines.base import Engine, TokenPair, TokensRefusedError
from mteb_vllm.errors import TemplateError
from mteb_vllm.inference.encoding import shorten, shorten_if_long
from mteb_vllm.inference.token_feed import TokenFeed, compare, open_feed, use_text
from mteb_vllm.models.score_templates import render_pair

# In a pair that is tokenised as one text, tokens can merge or split where its parts meet.
_SEAM = 8
_MARK = "\ue0d0the document\ue0d1"


class PairTokenizer:
    """Tokenises pairs as an engine does.

    Args:
        engine: An open engine that scores pairs.
        template: The jinja template that renders a pair; None if the model joins the two texts itself.
    """

    def __init__(self, engine: Engine, template: str | None) -> None:
        self.engine = engine
        self.limit = engine.max_model_len
        self.template = template
        self.tokenizer = engine.tokenizer
        self.joins_pairs = template is not None or not engine.separates_pairs
        self._around: dict[str, tuple[str, str]] = {}

    def fit_queries(self, queries: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64], list[bool]]:
        """Return the room that each query leaves for a document; a query that leaves none is truncated to half the context.

        Args:
            queries: The distinct queries.

        Returns:
            the queries, truncated where needed; the tokens left for a document, shape (n_queries,); whether each query was
            truncated.

        Raises:
            TemplateError: if the template alone is longer than the context.
        """
        texts = list(queries)
        room = self._document_room(texts)
        cut = [left < 1 for left in room]
        if any(cut):
            whole = int(self._document_room([""])[0])
            if whole < 2:
                raise TemplateError(f"the score template alone exceeds the context length of {self.limit} tokens")
            for at in np.flatnonzero(cut):
                texts[at] = self._first_tokens(texts[at], whole // 2)
            room = self._document_room(texts)
        return texts, room, cut

    def lengths(self, documents: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the tokens of each document without special tokens; for one beyond the context, at least the context."""
        shorter = [shorten(text, self.tokenizer, self.limit) for text in documents]
        tokens = self._ids(shorter, add_special_tokens=False)
        return np.array([len(ids) for ids in tokens], dtype=np.int64)

    def count(self, queries: Sequence[str], documents: Sequence[str]) -> list[int]:
        """Return the tokens of each pair as the engine tokenises it, with special tokens and without truncation."""
        if self.joins_pairs:
            pairs = zip(queries, documents, strict=True)
            rendered = [document.join(self._text_around_document(query)) for query, document in pairs]
            return [len(ids) for ids in self._ids(rendered, add_special_tokens=True)]
        return [len(ids) for ids in self.tokenizer(list(queries), list(documents), verbose=False)["input_ids"]]

    def may_exceed(self, lengths: npt.NDArray[np.int64], room: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return for each document whether it may be too long for the room that its query leaves."""
        return lengths + (_SEAM if self.joins_pairs else 0) > room

    def shorten(self, document: str) -> str:
        """Return the beginning of a document that is certainly too long; else the document."""
        return shorten_if_long(document, self.tokenizer, self.limit)

    def feed(self, queries: Sequence[str], documents: Sequence[str]) -> TokenFeed | None:
        """Return the tokeniser of pairs, if its token ids are those of the engine itself; None: the engine gets text.

        Args:
            queries: The queries of some pairs that are about to be scored, on which that is checked.
            documents: Their documents.
        """
        feed = open_feed(self.engine)
        if feed is None:
            return None
        try:
            if self.engine.own_template:
                raise TokensRefusedError("vLLM renders pairs with a built-in template for this model")
            # An empty document is tokenised as one of a pair, which vLLM does not do.
            pairs = [pair for pair in zip(queries, documents, strict=True) if pair[1] or self.joins_pairs]
            if not pairs:
                return feed
            ours = self.tokenize(feed, [query for query, _ in pairs], [document for _, document in pairs])
            # vLLM truncates pairs that are too long in another way.
            whole = [at for at, pair in enumerate(ours) if not pair.cut]
            pairs = [pairs[at] for at in whole]
            of_engine = self.engine.tokenize_pairs(
                [query for query, _ in pairs], [document for _, document in pairs], self.template
            )
            compare(pairs, [ours[at] for at in whole], [_token_pair(*one) for one in of_engine])
        except TokensRefusedError as error:
            use_text(self.engine, error)
            return None
        return feed

    def tokenize(self, feed: TokenFeed, queries: Sequence[str], documents: Sequence[str]) -> list[TokenPair]:
        """Tokenise pairs in one call of the tokenizer, truncated to the context."""
        if not self.joins_pairs:
            encoded = feed.encode(queries, documents, truncation="only_second")
            cut = feed.lost_tokens(encoded)
            types = encoded.get("token_type_ids") or [None] * len(cut)
            return [_token_pair(*pair) for pair in zip(encoded["input_ids"], types, cut, strict=True)]
        pairs = list(zip(queries, documents, strict=True))
        rendered = [document.join(self._text_around_document(query)) for query, document in pairs]
        encoded = feed.encode(rendered, truncation=False, max_length=None)
        types = encoded.get("token_type_ids") or [None] * len(rendered)
        # Of those that are too long, the end of the document is removed, and not that of the text.
        return [
            _token_pair(ids, segments) if len(ids) <= self.limit else self.cut(query, document)
            for (query, document), ids, segments in zip(pairs, encoded["input_ids"], types, strict=True)
        ]

    def cut(self, query: str, document: str) -> TokenPair:
        """Tokenise a pair, truncated to the context if it is too long."""
        document = shorten(document, self.tokenizer, self.limit)
        return self._truncate_text(query, document) if self.joins_pairs else self._truncate_pair(query, document)

    def _truncate_pair(self, query: str, document: str) -> TokenPair:
        # As a batch of one, since a call with single texts omits an empty second text and its separator.
        encoded = self.tokenizer([query], [document], truncation=False, verbose=False)
        inside = [at for at, side in enumerate(encoded.sequence_ids(0)) if side == 1]
        return self._truncate_document({key: rows[0] for key, rows in encoded.items()}, inside)

    def _truncate_text(self, query: str, document: str) -> TokenPair:
        head, tail = self._text_around_document(query)
        encoded = self.tokenizer(head + document + tail, truncation=False, verbose=False, return_offsets_mapping=True)
        begin, end = len(head), len(head) + len(document)
        inside = [at for at, (start, stop) in enumerate(encoded["offset_mapping"]) if begin <= start < stop <= end]
        return self._truncate_document(encoded, inside)

    def _truncate_document(self, encoded: Mapping[str, Sequence[int]], inside: Sequence[int]) -> TokenPair:
        """Remove the last tokens of the document, whose positions are `inside`, until the pair fits the context."""
        tokens = list(encoded["input_ids"])
        excess = max(len(tokens) - self.limit, 0)
        if len(inside) < excess:
            raise TemplateError(
                f"a pair cannot be truncated to the context length of {self.limit} tokens: its template leaves no room"
            )
        last = inside[-1] + 1 if inside else 0
        types = encoded.get("token_type_ids")
        kept = [*range(last - excess), *range(last, len(tokens))]
        segments = None if types is None else [types[at] for at in kept]
        return _token_pair([tokens[at] for at in kept], segments, excess > 0)

    def _document_room(self, queries: Sequence[str]) -> npt.NDArray[np.int64]:
        if self.joins_pairs:
            taken = self._ids(
                ["".join(self._text_around_document(query)) for query in queries], add_special_tokens=True
            )
            return np.array([self.limit - len(ids) for ids in taken], dtype=np.int64)
        special = self.tokenizer.num_special_tokens_to_add(pair=True)
        taken = self._ids(list(queries), add_special_tokens=False)
        return np.array([self.limit - len(ids) - special for ids in taken], dtype=np.int64)

    def _text_around_document(self, query: str) -> tuple[str, str]:
        """Return the text before and after the document in a pair that is tokenised as one text."""
        if self.template is None:
            return query, ""
        if query not in self._around:
            self._around[query] = self._render_around_document(self.template, query)
        return self._around[query]

    def _render_around_document(self, template: str, query: str) -> tuple[str, str]:
        head, mark, tail = render_pair(self.tokenizer, template, query, _MARK).rpartition(_MARK)
        if not mark or _MARK in head:
            raise TemplateError("the score template must contain the document exactly once and unchanged")
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


def _token_pair(tokens: Sequence[int], types: Sequence[int] | None, cut: bool = False) -> TokenPair:
    return TokenPair(list(tokens), _first_length(types), cut)


def _first_length(types: Sequence[int] | None) -> int | None:
    # vLLM passes `token_type_ids` on only as zeros followed by ones.
    return None if types is None else types.index(1) if 1 in types else len(types)
