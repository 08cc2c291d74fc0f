"""Layers on oneDNN give what torch's give, and gradients of what is trained beside them."""

from __future__ import annotations

import copy

import pytest
import torch

from isodense.models.inference.prepacked import Prepacked, prepack, prepack_frozen

onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="torch has no oneDNN",
)


@onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 16, 100])
def test_a_prepacked_layer_is_the_layer(bias, rows):
    torch.manual_seed(rows)
    layer = torch.nn.Linear(48, 80, bias=bias)
    states = torch.randn(1, rows, 48)
    with torch.inference_mode():
        found, expected = Prepacked(layer)(states), layer(states)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


class Scaled(torch.nn.Linear):
    """A layer that does more than multiply."""

    def forward(self, states):
        return 2 * super().forward(states)


@onednn
def test_all_plain_layers_are_replaced_at_any_depth_and_no_others():
    torch.manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), Scaled(8, 8))
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), inner)
    states = torch.randn(5, 8)
    with torch.inference_mode():
        expected = model(states)
        prepack(model)
        torch.testing.assert_close(model(states), expected, rtol=0, atol=1e-6)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(Prepacked) == 2
    assert torch.nn.Linear not in kinds
    assert Scaled in kinds


def test_layers_in_bfloat16_are_left_alone():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)).bfloat16()
    before = list(model.modules())
    prepack(model)
    assert all(one is two for one, two in zip(before, model.modules(), strict=True))


def half_frozen(kind=torch.nn.Linear):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Tanh(), kind(16, 16), torch.nn.Linear(16, 4, bias=False)
    )
    for layer in (model[2], model[3]):
        layer.requires_grad_(False)
    return model


@onednn
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_gradients_flow_through_frozen_layers(rows):
    plain, model = half_frozen(), half_frozen()
    prepack_frozen(model)
    states = torch.randn(2, rows, 8)
    outputs = []
    for one in (plain, model):
        outputs.append(one(states))
        outputs[-1][..., :3].sum().backward()  # an expanded gradient, not contiguous
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)
    assert plain[0].weight.grad.abs().sum() > 0
    for wanted, found in zip(plain[0].parameters(), model[0].parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-5, atol=1e-5)
    assert all(one.grad is None for layer in (model[2], model[3]) for one in layer.parameters())


class Twice(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


@onednn
@pytest.mark.parametrize("shape", [(8,), (0, 8), (3, 8), (2, 1, 3, 8)])
def test_frozen_layers_take_states_of_any_shape_and_let_them_be_changed_in_place(shape):
    plain, model = half_frozen(), half_frozen()
    prepack_frozen(model)
    states = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = [one(states).mul_(2) for one in (plain, model)]
    assert found[1].shape == found[0].shape
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@onednn
def test_a_parametrised_layer_runs_as_it_did():
    plain, model = half_frozen(), half_frozen()
    prepack_frozen(model)
    for one in (plain, model):
        torch.nn.utils.parametrize.register_parametrization(one[2], "weight", Twice())
    states = torch.ones(2, 8)
    torch.testing.assert_close(model(states), plain(states), rtol=0, atol=1e-6)
    torch.nn.utils.parametrize.remove_parametrizations(model[2], "weight", leave_parametrized=False)
    assert type(model[2]) is torch.nn.Linear
    torch.testing.assert_close(model(states), half_frozen()(states), rtol=0, atol=1e-6)


@onednn
def test_a_layer_that_is_trained_after_all_has_a_gradient():
    model = half_frozen()
    prepack_frozen(model)
    model[2].requires_grad_(True)
    model(torch.ones(2, 8)).sum().backward()
    assert model[2].weight.grad.abs().sum() > 0


@onednn
def test_under_autocast_layers_compute_in_its_type():
    model = half_frozen()
    prepack_frozen(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.ones(2, 8)).dtype == torch.bfloat16


@onednn
def test_second_derivatives_are_refused():
    model = half_frozen()
    prepack_frozen(model)
    states = torch.ones(2, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(states).pow(2).sum(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.pow(2).sum().backward()


@onednn
def test_frozen_layers_stay_in_the_model_and_trained_ones_as_they_are():
    model, plain = half_frozen(), half_frozen()
    prepack_frozen(model)
    assert ["forward" in vars(layer) for layer in model] == [False, False, True, True]
    assert all(type(layer) is type(other) for layer, other in zip(model, plain, strict=True))
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert torch.equal(copy.deepcopy(model)(torch.ones(3, 8)), model(torch.ones(3, 8)))


def test_frozen_layers_of_other_kinds_and_types_are_left_alone():
    for model in (half_frozen(Scaled)[2:3], half_frozen().bfloat16()):
        prepack_frozen(model)
        assert not any("forward" in vars(layer) for layer in model.modules())


@onednn
def test_a_layer_with_a_trained_bias_is_trained():
    layer = torch.nn.Linear(4, 4)
    layer.weight.requires_grad_(False)
    prepack_frozen(torch.nn.Sequential(layer))
    assert "forward" not in vars(layer)
