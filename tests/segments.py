"""Segments as the training contexts that read them: what precedes each, its gists, and its horizon."""

import numpy as np

from gistnet.data.sampling import ContextSample
from gistnet.objective.branches import SegmentBatch
from gistnet.objective.contexts import ContextBatch, pack_contexts
from gistnet.positions import Positions


def contexts_of(segments: SegmentBatch, positions: Positions = "end") -> ContextBatch:
    samples = []
    columns = (segments.windows.tolist(), segments.starts.tolist(), segments.counts.tolist())
    for window, start, count in zip(*columns, strict=True):
        end = start + count * segments.span_tokens + segments.horizon
        samples.append((window, ContextSample(start, np.array([start]), np.array([count]), end)))
    return pack_contexts(segments.tokens, samples, span_tokens=segments.span_tokens, positions=positions)
