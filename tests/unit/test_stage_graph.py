"""A model cut into stages: edges, shapes, shared parameters, and the parts that a rank makes."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_world import TiedSkip
from torch import nn

from dist_ml.config.model import ModelConfig
from dist_ml.errors import ConfigError
from dist_ml.models import MLP, Samples, WholeLayers, build_model
from dist_ml.models.blocks import INPUTS, Block, BlockModel
from dist_ml.nn.tuning import linear_factory
from dist_ml.partition import Range
from dist_ml.pipeline_parallel.stage_graph import (
    Shape,
    cut_into_stages,
    output_shapes,
    shared_parameters,
)

F64 = torch.float64


class Named(BlockModel):
    """Blocks of identities: name -> sources."""

    def __init__(
        self, sources: dict[str, str], modules: dict[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        modules = modules or {}
        self._blocks = tuple(
            Block(name, modules.get(name, nn.Identity()), tuple(text.split()))
            for name, text in sources.items()
        )

    def blocks(self) -> tuple[Block, ...]:
        return self._blocks

    def initialise(self, block: Block) -> None:
        pass


def cuts(*sizes: int) -> list[Range]:
    bounds = np.cumsum([0, *sizes]).tolist()
    return [Range(a, b) for a, b in itertools.pairwise(bounds)]


def edges(model: BlockModel, *sizes: int) -> list[tuple[str, int, int]]:
    stages = cut_into_stages(model, cuts(*sizes))
    gives = [edge for stage in stages for edge in stage.gives]
    takes = [edge for stage in stages for edge in stage.takes]
    assert sorted(gives) == sorted(takes)
    assert sorted(edge.number for edge in gives) == list(range(len(gives)))
    for stage in stages:
        assert all(edge.source == stage.number for edge in stage.gives)
        assert all(edge.destination == stage.number for edge in stage.takes)
    return sorted((edge.value, edge.source, edge.destination) for edge in gives)


def test_neighbours_and_connections_over_stages_are_edges() -> None:
    model = Named({"a": INPUTS, "b": "a", "c": "b", "d": f"c a {INPUTS}", "e": "d a"})
    assert edges(model, 1, 2, 1, 1) == [
        ("a", 0, 1),
        ("a", 0, 2),
        ("a", 0, 3),
        ("c", 1, 2),
        ("d", 2, 3),
    ]
    assert edges(model, 1, 2, 2) == [("a", 0, 1), ("a", 0, 2), ("c", 1, 2)]
    assert edges(model, 5) == []
    stages = cut_into_stages(model, cuts(1, 2, 1, 1))
    assert [stage.reads_inputs for stage in stages] == [True, False, True, False]
    assert [stage.is_last for stage in stages] == [False, False, False, True]
    assert [stage.output for stage in stages] == ["a", "c", "d", "e"]


def test_shapes_are_those_that_the_model_makes_without_any_weights() -> None:
    with torch.device("meta"):
        model = MLP((5, 7, 4, 3), dropout=0.5, dtype=F64)
    shapes = output_shapes(model, torch.zeros(2, 5, dtype=F64))
    assert shapes == {f"layers.{i}": Shape((size,), F64) for i, size in enumerate((7, 4, 3))}
    assert all(parameter.is_meta for parameter in model.parameters())
    with torch.device("meta"):
        wide = Named({"a": INPUTS, "b": "a"}, {"b": nn.Unflatten(1, (2, 3))})
    assert output_shapes(wide, torch.zeros(4, 6))["b"] == Shape((2, 3), torch.float32)


@pytest.mark.parametrize("module", [nn.Flatten(0), nn.Unflatten(0, (1, 3))], ids=str)
def test_an_output_that_does_not_begin_with_the_samples_is_told(module: nn.Module) -> None:
    model = Named({"a": INPUTS, "flat": "a"}, {"flat": module})
    with pytest.raises(ConfigError, match=r"block flat makes a tensor of shape .* of 3 samples"):
        output_shapes(model, torch.zeros(3, 2))


def test_parameters_of_several_stages_with_all_of_their_names() -> None:
    with torch.device("meta"):
        model = TiedSkip(5, 3, 0, F64, num_middle=3)
    stages = cut_into_stages(model, cuts(1, 2, 2))
    (places,) = shared_parameters(model, stages)
    assert [(place.stage, place.name) for place in places] == [
        (0, "parts.enter.tied"),
        (2, "parts.leave.tied"),
    ]
    assert shared_parameters(model, cut_into_stages(model, cuts(5))) == []
    model.materialize(stages[0].blocks)
    assert [place.parameter.is_meta for place in places] == [False, True]
    assert places[0].parameter is model.blocks()[0].module.tied


def test_a_layer_of_two_stages_is_shared_with_its_parameters() -> None:
    with torch.device("meta"):
        layer = nn.Linear(2, 2)
        model = Named({"a": INPUTS, "b": "a", "c": "b"}, {"a": layer, "c": layer})
    shared = shared_parameters(model, cut_into_stages(model, cuts(2, 1)))
    assert [[place.stage for place in places] for places in shared] == [[0, 1], [0, 1]]
    assert [len(stage.parameters()) for stage in cut_into_stages(model, cuts(3))] == [2]


def build(kind: str) -> BlockModel:
    if kind == "tied":
        return TiedSkip(5, 3, 2, F64, num_middle=2)
    config: dict[str, Any] = {"hidden": (400, 400, 6), "activation": "relu", "dropout": 0.2}
    layers = WholeLayers(linear_factory("torch"))
    return build_model(ModelConfig(**config), Samples((5,), 3), 2, F64, layers)


@pytest.mark.parametrize("kind", ["mlp", "tied"])
@pytest.mark.parametrize("own", [[0], [2, 3], [3, 0], [0, 1, 2, 3], None], ids=str)
def test_the_blocks_that_a_rank_makes_are_those_of_the_whole_model(
    kind: str, own: list[int] | None
) -> None:
    whole = build(kind)
    with torch.device("meta"):
        model = build(kind)
    blocks = model.blocks()
    mine = [blocks[i] for i in own] if own is not None else None
    model.materialize(mine)
    assert model.num_parameters == sum(parameter.numel() for parameter in whole.parameters())
    names = [block.name for block in mine or blocks]
    for block, there in zip(blocks, whole.blocks(), strict=True):
        for ours, theirs in zip(block.module.parameters(), there.module.parameters(), strict=True):
            if block.name in names:
                assert torch.equal(ours, theirs)
                assert ours.requires_grad
                assert hasattr(ours, "gradient_sink") == hasattr(theirs, "gradient_sink")
            else:
                assert ours.is_meta
    if kind == "tied" and {"enter", "leave"} <= set(names):
        assert blocks[0].module.tied is blocks[-1].module.tied
        assert len(list(model.parameters())) == len(list(whole.parameters()))


def test_a_layer_keeps_the_gradient_sink_that_its_weight_has() -> None:
    with torch.device("meta"):
        model = build("mlp")
    model.materialize()
    layer: Any = model.blocks()[1].module
    assert layer.layer.weight.gradient_sink is layer.layer._sink
