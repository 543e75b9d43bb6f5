"""The model card of a release: a page of the Hugging Face Hub, made from the files of its folder and nothing else."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import yaml
from pyarrow import parquet

from gistnet.data.dataset import DOCUMENTS_FILE
from gistnet.files import write_text
from gistnet.model.embedded_teacher import EMBEDDED_TEACHER
from gistnet.model.saved_gistnet import SavedGistNet
from gistnet.release.provenance import Provenance, read_provenance
from gistnet.release.results import ReleasedFigures, read_released, results_tables, targets_table
from gistnet.release_folder import CARD_FILE, DATA_NOTES_FILE, HELD_OUT_FOLDER, LIMITS_FILE
from gistnet.run_folder import CONFIG_FILE, read_config_values
from gistnet.terminal import escaped

EMBEDDED_BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the embedded teacher is called on the Hub."""


def write_card(folder: Path, shown_as: Path | None = None) -> None:
    """Write the card of a release folder into it.

    Raises:
        GistNetError: as `card`; or the folder cannot be written.
    """
    write_text(folder / CARD_FILE, card(folder, shown_as))


def card(folder: Path, shown_as: Path | None = None) -> str:
    """The card of a release folder, Markdown headed by the Hub's metadata.

    Args:
        shown_as: what the card calls the folder, where that is not its name for good.

    Raises:
        CheckpointError, DataError, ConfigError: a file of the folder is missing or damaged.
    """
    shown = shown_as or Path("released") / folder.resolve().name
    figures, provenance = read_released(folder), read_provenance(folder)
    config = read_config_values(folder / CONFIG_FILE)
    sections = [
        _front_matter(figures),
        f"# GistNet {shown.name}",
        _what_it_is(figures),
        "## Use",
        _use(shown, figures),
        "## Results",
        _results_said(shown, figures, provenance),
        results_tables(figures.shown),
        "### Targets",
        targets_table(figures.shown),
        "## Training",
        _training(figures, provenance, config.get("start_from")),
        "## Documents",
        *_notes(folder / DATA_NOTES_FILE),
        _documents(folder),
        "## Limits",
        *(_notes(folder / LIMITS_FILE) or ["What it was not trained and not evaluated on is not known."]),
    ]
    return "\n\n".join(section.strip("\n") for section in sections) + "\n"


def base_model(figures: ReleasedFigures) -> str | None:
    """The teacher's name on the Hub; None where it is a local folder."""
    name = figures.network.teacher.name
    if name == EMBEDDED_TEACHER:
        return EMBEDDED_BASE_MODEL
    return None if Path(name).is_absolute() or name.startswith(".") else name


def _front_matter(figures: ReleasedFigures) -> str:
    teacher = base_model(figures)
    values = {
        "license": "apache-2.0",
        "library_name": "gistnet",
        **({} if teacher is None else {"base_model": teacher}),
        "tags": ["gistnet", "context-compression", "gist-tokens", "prompt-compression"],
        "language": ["en"],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _what_it_is(figures: ReleasedFigures) -> str:
    network = figures.network
    span = network.config.span_tokens
    higher = "".join(
        f" A second one makes one vector of {span} of those, for {span ** (level + 1):,} tokens."
        for level in range(1, network.level + 1)
    )
    return (
        f"A GistNet compresses {span} tokens into one vector, their *gist*, in the input-embedding space of a language "
        f"model that stays frozen: {base_model(figures) or 'its teacher'}. The model reads the gist where the tokens "
        f"stood and should predict what follows as if nothing had changed.{higher}"
    )


def _use(shown: Path, figures: ReleasedFigures) -> str:
    in_context = figures.network.config.reads == "context"
    code = (_in_context if in_context else _alone)(figures.network.config.span_tokens)
    return f"""With the package `gistnet`, which comes with this folder under the name `{shown.name}`:

```python
import gistnet, torch

teacher = gistnet.Teacher.from_pretrained("{figures.network.teacher.name}")
compressor = gistnet.GistNet.from_pretrained("{shown.name}", teacher)  # or this folder, wherever it is
{code}
```

```sh
gistnet evaluate {shown.name}                                # every figure below, from the documents in held-out/
gistnet compress {shown.name} "library/*.txt" --tree library.tree
gistnet generate "Who is the captain?" --tree library.tree --document library/book.txt
```"""


def _alone(span: int) -> str:
    """The code for a GistNet that reads spans by themselves."""
    return f"""(tokens,) = teacher.tokenizer.encode_batch(["some text of at least {span} tokens " * 8])
with torch.no_grad():
    gists = gistnet.encode(compressor.levels[0], teacher, torch.tensor([tokens[:64]]))"""


def _in_context(span: int) -> str:
    """The code for a GistNet that reads spans where they stand."""
    return f"""(tokens,) = teacher.tokenizer.encode_batch(["some text of at least {4 * span} tokens " * {span}])
text = torch.tensor([tokens[:{4 * span}]])
read = teacher.prefill(text, hidden_state_layer=compressor.hidden_state_layer)
context = gistnet.SpanContext(read, windows=torch.tensor([0]), firsts=torch.tensor([{span}]))
with torch.no_grad():  # of tokens {span} to {3 * span - 1}, where they stand
    gists = gistnet.encode(compressor, teacher, text[:, {span}:{3 * span}], context)"""


def _results_said(shown: Path, figures: ReleasedFigures, provenance: Provenance) -> str:
    machine = provenance.evaluated_on
    device = machine["processor"] if machine.get("gpu", "none") == "none" else machine["gpu"]
    threads = f" with OMP_NUM_THREADS={machine['threads']}" if "threads" in machine else ""
    return (
        f"{_held_out_said(figures.network)}, all in `held-out/`; intervals are bootstrapped over documents. "
        f"{_overlap_said(provenance)} "
        "*kl* is KL(prediction after the tokens ‖ prediction after the replacement) over the H tokens that follow, in "
        f"nats per token; *recovered* is 1 − KL / KL of dropping the span. `gistnet evaluate {shown.name}` gives these "
        f"figures again, to the digit on a machine like this one ({device}, {machine['cores']} cores, torch "
        f"{machine['torch']}, transformers {machine['transformers']}){threads}{_also(shown, provenance)}; "
        "`results.json` has all of them, and `report.html` shows them."
    )


def _held_out_said(network: SavedGistNet) -> str:
    if len(network.trained_on) == 1:
        return "Held-out documents that it was not trained on"
    return (
        "Documents that its own run held out (it began with weights that were trained on another corpus, with which "
        "they were not compared)"
    )


def _overlap_said(provenance: Provenance) -> str:
    """How much of the held-out documents is in training documents, domain by domain."""
    told = [
        f"{found.above_a_tenth} of {found.documents} {domain} documents (at most {found.largest:.1%})"
        for domain, found in provenance.overlap.items()
    ]
    return f"By content, training documents have more than a tenth of the word 10-grams of {', '.join(told)}."


def _also(shown: Path, provenance: Provenance) -> str:
    commands = [f"`gistnet evaluate {shown.name} {changes}`" for changes in provenance.also_evaluated]
    return f", and {' and '.join(commands)} those that it leaves out" if commands else ""


def _training(figures: ReleasedFigures, provenance: Provenance, start_from: str | None) -> str:
    network = figures.network
    begun = f" (it began with the weights of `{start_from}`, whose spans are not counted)" if start_from else ""
    lines = [
        f"- Architecture: `{network.config.architecture}`, {network.level + 1} "
        f"{'level' if network.level == 0 else 'levels'}, positions {network.positions}.",
        f"- Trained parameters: {network.trained_parameters:,}; compute per gist of the highest level "
        f"{network.share_of_teacher:.1%} of the teacher's on the tokens that it stands for{_beside(network)}.",
        f"- Spans seen: {provenance.spans_seen:,}, in {provenance.steps:,} optimiser steps{begun}.",
        f"- Hardware: {provenance.hardware}.",
        f"- Command: `{provenance.command}`.",
        "- `config.yaml` is the complete configuration, in which files are names only.",
    ]
    return "\n".join(lines)


def _beside(network: SavedGistNet) -> str:
    """What the teacher must have done before, for a GistNet that reads its context."""
    if network.config.reads == "span":
        return ""
    return (
        f", beside the teacher's own reading of the text up to layer {network.config.teacher_layers}, which "
        "costs nothing more where the text was read, and is not counted here"
    )


def _notes(path: Path) -> list[str]:
    return [path.read_text(encoding="utf-8")] if path.is_file() else []


def _documents(folder: Path) -> str:
    """Every document of which a piece lies in the release, by source."""
    by_source: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in parquet.read_table(folder / HELD_OUT_FOLDER / DOCUMENTS_FILE).to_pylist():
        by_source[row["source"], row["domain"]].append(row["id"])
    count = sum(map(len, by_source.values()))
    return "\n".join(
        [
            f"<details><summary>The {count} documents of which one window each lies in <code>held-out/</code>, by "
            "source</summary>\n",
            *_listed(by_source),
            "\n</details>",
        ]
    )


def _listed(by_source: dict[tuple[str, str], list[str]]) -> Iterator[str]:
    for (source, domain), names in by_source.items():
        quoted = ", ".join(f"`{escaped(name).replace('`', chr(39))}`" for name in names)
        yield f"- {source} ({domain}): {quoted}"
