"""Registry rows."""

from __future__ import annotations

import pytest

from edgepose import EdgePoseError
from edgepose.models.registry import MODELS, get_model


def test_unknown_models_are_named_with_the_known_ones():
    with pytest.raises(EdgePoseError, match="unknown model 'transpose-r-a9'; registered: transpose-r-a3, "):
        get_model("transpose-r-a9")


@pytest.mark.parametrize("size", [(256, 200), (0, 32), (250, 192)])
def test_input_sizes_that_do_not_divide_are_refused(size):
    with pytest.raises(EdgePoseError, match=f"input size {size[0]}x{size[1]} does not fit transpose-r-a3"):
        get_model("transpose-r-a3").resized(size)


def test_a_resized_row_has_a_resized_contract():
    spec = get_model("transpose-h-s").resized((128, 96)).spec
    assert spec.input.shape == (None, 128, 96, 3)
    assert spec.output.shape == (None, 17, 32, 24)


def test_published_rows_have_an_address():
    published = [row for row in MODELS.values() if row.published]
    assert len(published) == 5
    assert all(row.published.url.endswith(".pth") for row in published)
