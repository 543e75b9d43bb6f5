"""A GistNet with its teacher: token ids in, gists out.

Whether spans are read alone or in their context, how levels follow each other, and in which number format products run
is known here and nowhere else.
"""

import torch
from torch import Tensor

from gistnet.errors import CheckpointError, DataError
from gistnet.model.gistnet import GistNet, SpanContext
from gistnet.model.layers import Dropout
from gistnet.model.teacher import PrefillOutput, Teacher


class SpanEncoder:
    """Encodes spans of token ids, through all levels of a GistNet.

    Matrix products run in bfloat16 where the teacher is held in it; the weights of GistNet stay in float32.

    Args:
        teacher: gives the embeddings that level 0 reads and, for a GistNet that reads its spans in context, the
            hidden states of their tokens.
        gistnet: of the level whose gists are made; it holds those below.

    Raises:
        CheckpointError: the GistNet belongs to another teacher.
    """

    def __init__(self, teacher: Teacher, gistnet: GistNet) -> None:
        if not gistnet.teacher_fingerprint.same_model(teacher.fingerprint):
            raise CheckpointError(
                f"The GistNet was trained with {gistnet.teacher_fingerprint.describe()}; "
                f"got the teacher {teacher.fingerprint.describe()}."
            )
        self.teacher = teacher
        self.gistnet = gistnet

    @property
    def below(self) -> "SpanEncoder | None":
        """The encoder of the level below; None at level 0."""
        return None if self.gistnet.below is None else SpanEncoder(self.teacher, self.gistnet.below)

    @property
    def reads_context(self) -> bool:
        """True if gists depend on what precedes their spans."""
        return self.gistnet.hidden_state_layer is not None

    def prefill(self, tokens: Tensor) -> PrefillOutput:
        """The teacher's pass over windows `[windows, tokens]`, with the hidden states that the GistNet reads."""
        return self.teacher.prefill(tokens, hidden_state_layer=self.gistnet.hidden_state_layer)

    def context(
        self, tokens: Tensor, starts: Tensor, windows: Tensor | None = None, prefill: PrefillOutput | None = None
    ) -> SpanContext | None:
        """Context of spans that begin at `starts` of windows; None where spans are read alone.

        Args:
            tokens: `[windows, tokens]`; read no farther than to the layer whose states are needed.
            starts: `[spans]`, the index of each span's first token.
            windows: `[spans]`, the window of each; None: there is only one.
            prefill: the pass over the windows, where `prefill` made it already.
        """
        if not self.reads_context:
            return None
        if prefill is None:
            layer = self.gistnet.hidden_state_layer
            prefill = self.teacher.prefill(tokens, hidden_state_layer=layer, to_the_end=False)
        return SpanContext(prefill, torch.zeros_like(starts) if windows is None else windows, starts)

    def encode(self, tokens: Tensor, context: SpanContext | None = None) -> Tensor:
        """Gists of consecutive spans: token ids `[rows, n * tokens_per_gist]`, int64 → `[rows, n, dim]`, float32.

        Args:
            tokens: on the teacher's device.
            context: of the first token of each row, for a GistNet that reads its spans in context.

        Raises:
            DataError: the tokens are not whole spans, or the context is missing.
        """
        return self.encode_with_attention(tokens, context)[0]

    def encode_with_attention(self, tokens: Tensor, context: SpanContext | None = None) -> tuple[Tensor, Tensor]:
        """Gists as by `encode`, and the latent queries' attention over the span, `[2, rows * n, heads, K]`."""
        if tokens.shape[1] % (size := self.gistnet.tokens_per_gist):
            raise DataError(f"Got rows of {tokens.shape[1]} tokens, expected a multiple of {size}, a gist's.")
        span, below = self.gistnet.branching, self.below
        vectors = self.teacher.embed(tokens) if below is None else below.encode(tokens, context)
        of_spans = context and context.spans(tokens.shape[1] // span, span) if self.gistnet.reads_context else None
        with encoding_precision(self.teacher):
            gists, attention = self.gistnet.forward_with_attention(
                vectors.view(-1, span, self.teacher.hidden_size), context=of_spans
            )
        return gists.view(len(tokens), -1, self.teacher.hidden_size), attention

    def encode_spans(
        self,
        tokens: Tensor,
        windows: Tensor,
        starts: Tensor,
        prefill: PrefillOutput | None = None,
        *,
        train_below: bool = False,
        dropout_rate: float = 0.0,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """Gists of spans that begin at `starts` of `windows`, `[spans]` each: `[spans, dim]`.

        A span that is asked for several times, or is part of several spans of a higher level, is encoded once.

        Args:
            tokens: `[windows, tokens]`.
            prefill: the pass over the windows, for a GistNet that reads its spans in context.
            train_below: whether gradient and dropout reach the levels below, too.
            dropout_rate: the share dropped inside GistNet.
            dropout_keys: `[windows]`, int64; a span's masks derive from its window's key and its start. None: no
                dropout.
        """
        gistnet, length = self.gistnet, tokens.shape[1]
        span, below = gistnet.branching, self.below
        # A span is known by the index of its first token, counted over all windows.
        numbers, which = (windows * length + starts).unique(return_inverse=True)
        windows, starts = numbers // length, numbers % length
        parts = starts[:, None] + torch.arange(span, device=starts.device) * (gistnet.tokens_per_gist // span)
        if below is None:
            vectors = self.teacher.embed(tokens[windows[:, None], parts])
        else:
            with torch.set_grad_enabled(train_below and torch.is_grad_enabled()):
                vectors = below.encode_spans(
                    tokens,
                    windows[:, None].expand_as(parts).flatten(),
                    parts.flatten(),
                    prefill,
                    train_below=train_below,
                    dropout_rate=dropout_rate,
                    dropout_keys=dropout_keys if train_below else None,
                ).view(*parts.shape, -1)
        dropout = None if dropout_keys is None else Dropout(dropout_rate, dropout_keys[windows] + starts)
        context = SpanContext(prefill, windows, starts) if gistnet.reads_context and prefill is not None else None
        return self.encode_vectors(vectors, dropout, context)[which]

    def encode_vectors(
        self, vectors: Tensor, dropout: Dropout | None = None, context: SpanContext | None = None
    ) -> Tensor:
        """Gists of spans of the vectors that this level reads: `[spans, K, dim]` → `[spans, dim]`, float32."""
        with encoding_precision(self.teacher):
            return self.gistnet(vectors, dropout, context)


def encoding_precision(teacher: Teacher) -> torch.autocast:
    """The number format in which a GistNet's matrix products run: the teacher's, where that is bfloat16."""
    return torch.autocast(teacher.device.type, dtype=torch.bfloat16, enabled=teacher.dtype == torch.bfloat16)
