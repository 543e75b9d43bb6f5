"""Where benchmarks keep their results."""

from pathlib import Path

from benchmarks.machine import RESULTS, results_file


def test_another_gistnet_has_results_of_its_own():
    assert results_file("recall", Path("smollm2-135m-gist32")) == RESULTS / "recall.json"
    assert results_file("recall", Path("smollm2-135m-gist8")) == RESULTS / "recall-smollm2-135m-gist8.json"
    assert results_file("recall", Path("runs/mine")) == RESULTS / "recall-mine.json"
