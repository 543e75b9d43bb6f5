"""Model card of a release and its tables of results, made from the files of its folder and nothing else."""

from collections import defaultdict
from collections.abc import Sequence
from math import prod
from pathlib import Path

import yaml

from gistnet.data.dataset import is_for_validation, read_documents
from gistnet.evaluation.records import MetricRecord
from gistnet.model.embedded_teacher import EMBEDDED_TEACHER
from gistnet.model.saved_gistnet import SavedGistNet
from gistnet.release.contents import Release, read_release
from gistnet.release_folder import DATA_NOTES_FILE, HELD_OUT_FOLDER, LIMITS_FILE
from gistnet.report.tables import (
    FREE,
    grouped,
    interval_text,
    markdown,
    met_for_free,
    results_rows,
    target_text,
)
from gistnet.terminal import escaped

EMBEDDED_BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Name of the embedded teacher on the Hub."""

_WHOLE_HORIZON = ("kl", "delta_nll", "substitutability_rate", "perplexity_ratio")
_EACH_RANGE = "recovered_kl"


def card(folder: Path, shown_as: Path | None = None) -> str:
    """Markdown card of a release folder, headed by the Hub's metadata.

    Args:
        shown_as: what the card calls the folder, where that is not its name for good.

    Raises:
        CheckpointError, DataError, ConfigError: a file of the folder is missing or damaged.
    """
    name = (shown_as or folder.resolve()).name
    release = read_release(folder)
    sections = [
        _front_matter(release.network),
        f"# GistNet {name}",
        _summary_of_network(release.network),
        "## Use",
        _use(name, release.network),
        "## Results",
        _about_results(name, release, folder / HELD_OUT_FOLDER),
        results_tables(release.shown),
        "### Targets",
        targets_table(release.shown),
        "## Training",
        _training(release),
        "## Documents",
        *_notes(folder / DATA_NOTES_FILE),
        _documents(folder),
        "## Limits",
        *(_notes(folder / LIMITS_FILE) or ["What it was not trained and not evaluated on is not known."]),
    ]
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def base_model(network: SavedGistNet) -> str | None:
    """The teacher's name on the Hub; None where it is a local folder."""
    name = network.teacher.name
    if name == EMBEDDED_TEACHER:
        return EMBEDDED_BASE_MODEL
    return None if Path(name).is_absolute() or name.startswith(".") else name


def _front_matter(network: SavedGistNet) -> str:
    teacher = base_model(network)
    values = {
        "license": "apache-2.0",
        "library_name": "gistnet",
        **({} if teacher is None else {"base_model": teacher}),
        "tags": ["gistnet", "context-compression", "gist-tokens", "prompt-compression"],
        "language": ["en"],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _summary_of_network(network: SavedGistNet) -> str:
    first, *above = network.branchings
    higher = "".join(
        f" Another one makes one vector of {branching} of those, for {prod(network.branchings[: level + 1]):,} tokens."
        for level, branching in enumerate(above, start=1)
    )
    return (
        f"A GistNet compresses {first} tokens into one vector, their *gist*, in the input-embedding space of a "
        f"language model that stays frozen: {base_model(network) or 'its teacher'}. The model reads the gist where the "
        f"tokens stood and should predict what follows as if nothing had changed.{higher}"
    )


def _use(name: str, network: SavedGistNet) -> str:
    span = network.branchings[0]
    if network.config.reads == "context":
        code = f"""(tokens,) = teacher.tokenizer.encode_batch(["some text of at least {4 * span} tokens " * {span}])
text = torch.tensor([tokens[:{4 * span}]])
encoder = gistnet.SpanEncoder(teacher, compressor)
with torch.no_grad():  # of tokens {span} to {3 * span - 1}, where they stand
    context = encoder.context(text, torch.tensor([{span}]))
    gists = encoder.encode(text[:, {span}:{3 * span}], context)"""
    else:
        code = f"""(tokens,) = teacher.tokenizer.encode_batch(["some text of at least {span} tokens " * 8])
with torch.no_grad():
    gists = gistnet.SpanEncoder(teacher, compressor.levels[0]).encode(torch.tensor([tokens[:{2 * span}]]))"""
    return f"""With the package `gistnet`, which comes with this folder under the name `{name}`:

```python
import gistnet, torch

teacher = gistnet.Teacher.from_pretrained("{network.teacher.name}")
compressor = gistnet.GistNet.from_pretrained("{name}", teacher)  # or this folder, wherever it is
{code}
```

```sh
gistnet evaluate {name}                                # every figure below, from the documents in held-out/
gistnet compress {name} "library/*.txt" --tree library.tree
gistnet generate "Who is the captain?" --tree library.tree --document library/book.txt
```"""


def _about_results(name: str, release: Release, held_out: Path) -> str:
    provenance, machine = release.provenance, release.provenance.evaluated_on
    if len(release.network.trained_on) == 1:
        documents = "Held-out documents that it was not trained on"
    else:
        documents = (
            "Documents that its own run held out (it began with weights that were trained on another corpus, with "
            "which they were not compared)"
        )
    overlaps = ", ".join(
        f"{found.above_a_tenth} of {found.documents} {domain} documents (at most {found.largest:.1%})"
        for domain, found in provenance.overlap.items()
    )
    device = machine["processor"] if machine.get("gpu", "none") == "none" else machine["gpu"]
    threads = f" with OMP_NUM_THREADS={machine['threads']}" if "threads" in machine else ""
    further = " and ".join(f"`gistnet evaluate {name} {changes}`" for changes in provenance.also_evaluated)
    return (
        f"{documents}, all in `held-out/`; intervals are bootstrapped over documents. "
        f"They were kept from the gradient, {_validated_on(release, held_out)} "
        f"By content, training documents have more than a tenth of the word 10-grams of {overlaps}. "
        "*kl* is KL(prediction after the tokens ‖ prediction after the replacement) over the H tokens that follow, in "
        f"nats per token; *recovered* is 1 − KL / KL of dropping the span. `gistnet evaluate {name}` gives these "
        f"figures again, to the digit with the code that measured them on a machine like this one ({device}, "
        f"{machine['cores']} cores, torch "
        f"{machine['torch']}, transformers {machine['transformers']}){threads}"
        f"{f', and {further} those that it leaves out' if further else ''}; "
        f"`results.json` has all of them, and `gistnet report {name}` shows them."
    )


def _validated_on(release: Release, held_out: Path) -> str:
    """Which of the documents that were evaluated the run's validations may have had, by the halves that each takes."""
    rows = read_documents(held_out).to_pylist()
    shared = sorted({row["domain"] for row in rows if is_for_validation(row["key"])})
    reported = release.records[0].domain
    if reported not in shared:
        few = f"; of {', '.join(shared)} text, of which there is little, some may be the same" if shared else ""
        return f"and validations while it was trained took other documents{few}."
    config = release.config
    most = max(stage.train.validation.documents for stage in config.stages)
    return (
        "but not from every choice: the checkpoint was chosen by validations on held-out documents of the same "
        f"corpus, up to {most} of each kind of text, drawn with seed {config.seed}; those of the figures were drawn "
        f"with seed {config.evaluation.seed}, and some may be the same."
    )


def _training(release: Release) -> str:
    network, provenance, start_from = release.network, release.provenance, release.config.start_from
    begun = f" (it began with the weights of `{start_from}`, whose spans are not counted)" if start_from else ""
    prefill = ""
    if network.config.reads == "context":
        prefill = (
            f", beside the teacher's own reading of the text up to layer {network.config.teacher_layers}, which "
            "costs nothing more where the text was read, and is not counted here"
        )
    lines = [
        f"- Architecture: `{network.config.architecture}`, {network.level + 1} "
        f"{'level' if network.level == 0 else 'levels'}, positions {network.positions}.",
        f"- Trained parameters: {network.trained_parameters:,}; compute per gist of the highest level "
        f"{network.share_of_teacher:.1%} of the teacher's on the tokens that it stands for{prefill}.",
        f"- Spans seen: {provenance.spans_seen:,}, in {provenance.steps:,} optimiser steps{begun}.",
        f"- Hardware: {provenance.hardware}.",
        f"- Command: `{provenance.command}`.",
        "- `config.yaml` is the complete configuration, in which files are names only.",
    ]
    return "\n".join(lines)


def _notes(path: Path) -> list[str]:
    return [path.read_text(encoding="utf-8")] if path.is_file() else []


def _documents(folder: Path) -> str:
    """Every document of which a piece lies in the release, by source."""
    rows = read_documents(folder / HELD_OUT_FOLDER).to_pylist()
    by_source: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in rows:
        by_source[row["source"], row["domain"]].append(f"`{escaped(row['id']).replace('`', chr(39))}`")
    lists = "\n".join(f"- {source} ({domain}): {', '.join(names)}" for (source, domain), names in by_source.items())
    return (
        f"<details><summary>The {len(rows)} documents of which one window each lies in <code>held-out/</code>, by "
        f"source</summary>\n\n{lists}\n\n</details>"
    )


# Results -------------------------------------------------------------------------------------------------------------


def summary(records: Sequence[MetricRecord]) -> str:
    """Results of the first kind of text at its shortest horizon, and the targets that say something of the gist."""
    predicted = [record for record in records if record.horizon is not None]
    shortest = min((record.horizon or 0 for record in predicted), default=0)
    of_first = [r for r in predicted if (r.domain, r.horizon) == (predicted[0].domain, shortest)]
    return f"{results_tables(of_first)}\n\n{targets_table(records, every=False)}"


def results_tables(records: Sequence[MetricRecord]) -> str:
    """A table for each kind of text, horizon, policy and level, each headed by what it is.

    KL, ΔNLL, the substitutability rate and the perplexity ratio over the whole horizon, and the shares recovered for
    each range of offsets, beside their baselines.
    """
    of_rows = [r for r in records if r.name.startswith("row_recovered")]
    shown = [r for r in records if _in_results(r) and r not in of_rows]
    tables = []
    for (domain, positions, horizon, level, spans), members in grouped(shown):
        several = f", {spans} spans a segment" if spans > 1 else ""
        tables.append(
            f"{domain}, H = {horizon}, positions {positions}, level {level}{several}: {members[0].n_spans} spans of "
            f"{members[0].n_documents} documents\n\n{markdown(*results_rows(members), bold='gist')}"
        )
    for domain, positions in dict.fromkeys((r.domain, r.positions) for r in of_rows):
        members = [r for r in of_rows if (r.domain, r.positions) == (domain, positions)]
        tables.append(
            f"{domain}, gists in a row + raw tokens behind them, positions {positions}: {members[0].n_documents} "
            f"documents\n\n{markdown(*results_rows(members, 'row'), bold='gist')}"
        )
    return "\n\n".join(tables)


def on_card(record: MetricRecord) -> bool:
    """True for a figure that the card shows, in a table of results or of targets."""
    return _in_results(record) or _is_aimed(record)


def _in_results(record: MetricRecord) -> bool:
    if record.name.startswith("row_recovered"):
        return True
    whole_horizon = record.name in _WHOLE_HORIZON and record.offsets == (1, record.horizon)
    return record.is_whole and (record.name == _EACH_RANGE or whole_horizon)


def _is_aimed(record: MetricRecord) -> bool:
    return record.target is not None and record.is_whole


def targets_table(records: Sequence[MetricRecord], *, every: bool = True) -> str:
    """Every figure that has a target, whether it is met, and whether replacements that cost nothing meet it too.

    Args:
        every: show those that such replacements meet, too, and not only count them.
    """
    aimed = [record for record in records if _is_aimed(record)]
    if not aimed:
        return "None of the figures has a target."
    rows = [
        [
            record.name,
            f"{record.domain}{'' if record.horizon is None else f', H = {record.horizon}'}, level {record.level}",
            f"{record.value:.3f}",
            interval_text(record),
            *(f"{record.baselines[name]:.3f}" if name in record.baselines else "" for name in FREE),
            target_text(record),
        ]
        for record in aimed
        if every or not (record.met and met_for_free(record))
    ]
    met = [record for record in aimed if record.met]
    empty = sum(bool(met_for_free(record)) for record in met)
    names = (name.replace("_", " ") for name in FREE)
    table = markdown(["metric", "text", "gist", "95 % interval", *names, "target"], rows, bold="gist")
    counts = f"{len(met) - empty} met by the gist alone; {len(aimed) - len(met)} not met; {empty} met"
    return (
        f"Of {len(aimed)} targets: {counts} by dropping the span or by its last token, too, which cost nothing: these "
        f"show nothing of the gist{'' if every else ', and only the card lists them'}.\n\n{table}"
    )
