"""Rewrites are exact: in float64 each one, and all together, change nothing but rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgepose.converters.rewrite import REWRITES, fold_batchnorm, fuse_attention, rewrite, unfold_deconvolution
from edgepose.models.blocks import Encoder, PoolTokens, sine_position
from edgepose.models.registry import get_model

MODELS = ("transpose-r-t", "transpose-r-a3", "transpose-h-s")


def build(name, deterministic_weights):
    """In float64, so that what is left over is not rounding."""
    model = get_model(name).build()
    shapes = {key: tuple(t.shape) for key, t in model.state_dict().items() if key != "pos_embedding"}
    weights = {key: torch.from_numpy(w) for key, w in deterministic_weights(shapes).items()}
    model.load_state_dict(weights, strict=False)
    return model.double().eval()


def crops(name, count=1):
    height, width = get_model(name).input_hw
    return torch.randn(count, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_all_together_are_exact(name, deterministic_weights):
    model, image = build(name, deterministic_weights), crops(name)
    expected = model(image)
    torch.testing.assert_close(rewrite(model)(image), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(model(image), expected, rtol=0, atol=0)  # the model itself stays as it is


@pytest.mark.parametrize("step", REWRITES, ids=lambda step: step.__name__)
@torch.inference_mode()
def test_each_is_exact_alone(step, deterministic_weights):
    model, image = build("transpose-r-t", deterministic_weights), crops("transpose-r-t")
    expected = model(image)
    before = [type(module) for module in model.modules()]
    step(model)
    torch.testing.assert_close(model(image), expected, rtol=0, atol=1e-10)
    assert [type(module) for module in model.modules()] != before  # it did something


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_that_quantizes_badly(name, deterministic_weights):
    kinds = {type(module) for module in rewrite(build(name, deterministic_weights)).modules()}
    assert not kinds & {nn.BatchNorm2d, nn.ConvTranspose2d, Encoder}


@pytest.mark.parametrize(("heads", "grid"), [(1, (3, 5)), (4, (4, 2)), (2, (1, 1))])
@torch.inference_mode()
def test_attention_of_any_size(heads, grid):
    torch.manual_seed(heads)
    parent = nn.Module()
    parent.encoder = Encoder(2, 8, heads, 16)
    parent.pos_embedding = nn.Parameter(sine_position(grid, 8))
    for parameter in parent.parameters():
        nn.init.normal_(parameter)
    parent = parent.double().eval()
    features = torch.randn(3, 8, *grid, dtype=torch.float64)
    expected = parent.encoder(features, parent.pos_embedding)
    fuse_attention(parent)
    torch.testing.assert_close(parent.encoder(features, parent.pos_embedding), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("heads", "grid", "factor"), [(1, (4, 6), 2), (4, (8, 4), 4), (2, (2, 2), 2)])
@torch.inference_mode()
def test_pooled_attention_of_any_size(heads, grid, factor):
    """Against the textbook: keys and values of pooled maps."""
    torch.manual_seed(heads)
    parent = nn.Module()
    parent.encoder = Encoder(2, 8, heads, 16, PoolTokens(grid[1], factor))
    parent.pos_embedding = nn.Parameter(sine_position(grid, 8))
    for parameter in parent.parameters():
        nn.init.normal_(parameter)
    parent = parent.double().eval()
    features = torch.randn(3, 8, *grid, dtype=torch.float64)
    expected = features.flatten(2).transpose(1, 2)
    for layer in parent.encoder.layers:
        expected = by_the_textbook(layer, expected, parent.pos_embedding[:, 0], grid, factor)
    expected = expected.transpose(1, 2).reshape(features.shape)
    torch.testing.assert_close(parent.encoder(features, parent.pos_embedding), expected, rtol=0, atol=1e-12)
    fuse_attention(parent)
    torch.testing.assert_close(parent.encoder(features, parent.pos_embedding), expected, rtol=0, atol=1e-12)


def by_the_textbook(layer, tokens, position, grid, factor):
    def pooled(x):
        maps = x.transpose(1, 2).unflatten(2, grid)
        return nn.functional.avg_pool2d(maps, factor).flatten(2).transpose(1, 2)

    attention = nn.MultiheadAttention(8, layer.self_attn.heads, batch_first=True).double()
    attention.load_state_dict(layer.self_attn.state_dict())
    seen = tokens + position
    with torch.enable_grad():  # off its fast path, which rounds otherwise
        mixed = attention(seen, pooled(seen), pooled(tokens), need_weights=False)[0].detach()
    x = layer.norm1(tokens + mixed)
    return layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))


def deconvolution(c_in, c_out, *layers):
    layers = layers or (nn.ConvTranspose2d(c_in, c_out, 4, 2, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())
    return nn.Sequential(nn.Sequential(*layers), nn.Conv2d(c_out, 3, 1))


@pytest.mark.parametrize(("c_in", "c_out", "hw"), [(1, 1, (1, 1)), (3, 5, (4, 7)), (8, 2, (2, 9))])
@torch.inference_mode()
def test_deconvolutions_of_any_size(c_in, c_out, hw):
    torch.manual_seed(c_in)
    model = deconvolution(c_in, c_out)
    nn.init.uniform_(model[0][1].running_var, 0.5, 2)
    nn.init.normal_(model[0][1].running_mean)
    model = model.double().eval()
    image = torch.randn(2, c_in, *hw, dtype=torch.float64)
    expected = model(image)
    unfold_deconvolution(model)
    assert isinstance(model[0], nn.Identity)
    torch.testing.assert_close(model(image), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "layers",
    [
        (nn.ConvTranspose2d(3, 3, 2, 2, bias=False), nn.BatchNorm2d(3), nn.ReLU()),  # another geometry
        (nn.ConvTranspose2d(3, 3, 4, 2, 1), nn.BatchNorm2d(3), nn.ReLU()),  # a bias
        (nn.ConvTranspose2d(3, 3, 4, 2, 1, bias=False), nn.BatchNorm2d(3)),  # no ReLU
    ],
)
def test_other_deconvolutions_stay(layers):
    model = deconvolution(3, 3, *layers)
    unfold_deconvolution(model)
    assert isinstance(model[0][0], nn.ConvTranspose2d)


@torch.inference_mode()
def test_a_batchnorm_that_follows_no_convolution_stays():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    fold_batchnorm(model)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 2
