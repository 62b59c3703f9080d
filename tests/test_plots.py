"""The figures of a run: what they show, and the files they become."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from charlm import MLP, CountBigram, NeuralBigram, Vocabulary, checkpoint, plots
from charlm.cli import main

VOCABULARY = Vocabulary("ab")
RECORDS = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.5, "dev": 2.75}, {"step": 30, "loss": None}]


def test_the_loss_curve_shows_every_record() -> None:
    (axes,) = plots.loss_curve(RECORDS).axes
    train, dev = axes.lines
    np.testing.assert_array_equal(train.get_xydata(), [[10, 3.0], [20, 2.5], [30, math.nan]])
    np.testing.assert_array_equal(dev.get_xydata(), [[20, 2.75]])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train (batches)", "dev"]


def test_embeddings_of_two_dimensions_are_shown_as_they_are() -> None:
    embedding = torch.tensor([[1.0, 2.0], [3.0, 4.0], [-5.0, 6.0]])
    (axes,) = plots.embedding_map(embedding, VOCABULARY).axes
    (points,) = axes.collections
    np.testing.assert_array_equal(points.get_offsets(), embedding)
    labels = {text.get_text(): list(text.get_position()) for text in axes.texts}
    assert labels == dict(zip([".", "a", "b"], embedding.tolist(), strict=True))


def test_embeddings_of_one_dimension_are_on_a_line() -> None:
    (axes,) = plots.embedding_map(torch.tensor([[1.0], [3.0], [-5.0]]), VOCABULARY).axes
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), [[1.0, 0.0], [3.0, 0.0], [-5.0, 0.0]])


def test_embeddings_of_more_dimensions_are_shown_at_their_principal_components() -> None:
    # A plane in four dimensions, wider along its first axis.
    plane = torch.tensor([[4.0, 0.0], [-4.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    axes_in_space = torch.tensor([[0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 0.0, -1.0]], dtype=torch.float64)
    embedding = plane @ axes_in_space + 7.0
    (axes,) = plots.embedding_map(embedding, VOCABULARY).axes
    shown = torch.tensor(np.asarray(axes.collections[0].get_offsets()))
    # Distances are kept, the centre is the origin, and the components are ordered and not correlated.
    torch.testing.assert_close(torch.cdist(shown, shown), torch.cdist(plane, plane))
    torch.testing.assert_close(shown.sum(dim=0), torch.zeros(2, dtype=torch.float64))
    assert shown[:, 0].square().sum() > shown[:, 1].square().sum()
    assert abs(shown[:, 0] @ shown[:, 1]) < 1e-12


def test_counts_are_written_into_their_cells() -> None:
    counts = torch.tensor([[0, 9, 99], [1, 2, 3], [4, 5, 6]])
    axes, _ = plots.count_map(counts, VOCABULARY).axes
    np.testing.assert_allclose(axes.images[0].get_array(), np.log10(1.0 + counts.numpy()), rtol=1e-12)
    assert [text.get_text() for text in axes.texts] == ["0", "9", "99", "1", "2", "3", "4", "5", "6"]
    assert [text.get_position() for text in axes.texts[:4]] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    assert [label.get_text() for label in axes.get_xticklabels()] == [".", "a", "b"]


def test_probabilities_have_a_colour_only() -> None:
    model = NeuralBigram(3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0]]))
    axes, _ = plots.figures(model, VOCABULARY, [])["probabilities"].axes
    np.testing.assert_allclose(axes.images[0].get_array(), model.weight.softmax(1).detach().numpy(), rtol=1e-6)
    assert len(axes.texts) == 0


def test_a_large_vocabulary_has_no_labels() -> None:
    vocabulary = Vocabulary([chr(0x4E00 + i) for i in range(99)])
    axes, _ = plots.count_map(torch.ones(100, 100, dtype=torch.int64), vocabulary).axes
    assert len(axes.texts) == 0
    assert "一" not in [label.get_text() for label in axes.get_xticklabels()]


def test_characters_that_would_not_be_seen_are_escaped() -> None:
    vocabulary = Vocabulary("\n\t $一")
    (axes,) = plots.embedding_map(torch.randn(6, 2), vocabulary).axes
    assert [text.get_text() for text in axes.texts] == ["\\t", "\\n", "' '", "$", ".", "一"]


@pytest.mark.parametrize(
    ("model", "records", "names"),
    [
        (MLP(3, 2, 4, 5), RECORDS, ["loss", "embedding"]),
        (NeuralBigram(3), RECORDS, ["loss", "probabilities"]),
        (CountBigram(3), [], ["counts"]),
    ],
    ids=["mlp", "bigram", "count-bigram"],
)
def test_each_model_has_its_figures(
    model: MLP | NeuralBigram | CountBigram, records: list[dict[str, float]], names: list[str], tmp_path: Path
) -> None:
    drawn = plots.figures(model, VOCABULARY, records)
    assert list(drawn) == names
    paths = plots.save(drawn, tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / f"{name}.png" for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in paths)


def test_a_character_without_a_glyph_is_no_warning(tmp_path: Path) -> None:
    figure = plots.embedding_map(torch.randn(2, 2), Vocabulary("一"))
    (path,) = plots.save({"embedding": figure}, tmp_path)
    assert path.stat().st_size > 0


def test_the_command_writes_into_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("ab\n" * 10)
    run = str(tmp_path / "run")
    assert main(["train", str(text), "--model", "bigram", "--steps", "5", "--out", run, "--quiet"]) == 0
    assert len(checkpoint.read_metrics(run)) == 5
    capsys.readouterr()
    assert main(["plot", run]) == 0
    assert capsys.readouterr().out == f"{run}/loss.png\n{run}/probabilities.png\n"
    assert main(["plot", run, "--out", str(tmp_path / "pictures")]) == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["loss.png", "probabilities.png"]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"^plots need matplotlib\. Run: pip install matplotlib$"):
        plots.loss_curve(RECORDS)


def test_matplotlib_is_imported_by_the_first_figure_only() -> None:
    code = "import sys, charlm, charlm.cli, charlm.plots; sys.exit('matplotlib' in sys.modules)"
    folder = str(Path(plots.__file__).parent.parent)
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": folder}, check=False).returncode == 0
