"""What can't be trained on a pipeline is told on all ranks, in words, before any training."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from pipeline_world import on_mesh, settings, tied_skip
from thread_world import run_ranks

from dist_ml.comm.communicator import Communicator
from dist_ml.config.model import ModelConfig
from dist_ml.config.train import MeshConfig, TrainConfig
from dist_ml.errors import ConfigError, DistMLError
from dist_ml.models import MODELS, ModelMember
from dist_ml.pipeline_parallel.schedules.csv_file import write_csv
from dist_ml.pipeline_parallel.schedules.family import make
from dist_ml.pipeline_parallel.schedules.request import Request
from dist_ml.train.build import build_mesh, build_trainer


def refusal(config: TrainConfig, num_ranks: int) -> str:
    """What all ranks say."""

    def body(comm: Communicator) -> str:
        mesh = build_mesh(config, comm)
        with pytest.raises(DistMLError) as caught:
            build_trainer(config, mesh)
        assert caught.value.agreed
        return str(caught.value)

    told = run_ranks(num_ranks, body)
    assert len(set(told)) == 1
    return told[0]


CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any], str]] = {
    # ranks of the pipeline, configuration, pipeline, words
    "more stages than blocks": (
        4,
        {"model": ModelConfig(hidden=(6,))},
        {},
        "4 stages need as many blocks, but the model has 2; use at most 2 stages",
    ),
    "interleaved": (
        3,
        {},
        {"name": "interleaved", "microbatches": 7},
        "interleaved needs a multiple of the 3 ranks as micro-batches, not 7; use 6 or 9",
    ),
    "chimera": (4, {}, {"name": "chimera", "microbatches": 7}, "not 7; use 6 or 8"),
    "chimera, odd": (3, {}, {"name": "chimera"}, "needs an even number of stages.*use 2 or 4"),
    "chimera's pipes": (4, {}, {"name": "chimera", "pipes": 3}, "not 3; use one of 2, 4"),
    "concatenation": (
        2,
        {},
        {"name": "chimera", "concatenation": "twice"},
        "concatenation=twice is not one of auto, direct, doubling",
    ),
    "dualpipe_v": (
        4,
        {},
        {"name": "dualpipe_v", "microbatches": 5},
        "dualpipe_v needs at least 8 micro-batches on 4 ranks, not 5; use 8",
    ),
    "unknown": (2, {}, {"name": "gpip"}, "pipeline.name=gpip is not one of .*mean gpipe"),
    "2bw, few micro-batches": (
        4,
        {},
        {"name": "pipedream_2bw", "microbatches": 3},
        "needs at least 4 micro-batches on 4 ranks, not 3",
    ),
    "2bw, clipped": (
        2,
        {"clip_norm": 0.5},
        {"name": "pipedream_2bw"},
        "clip_norm=0.5 needs the norm .* before each update.*set clip_norm=null nonfinite=stop, or",
    ),
    "2bw, skipping": (
        2,
        {"nonfinite": "skip"},
        {"name": "pipedream_2bw"},
        "nonfinite=skip needs the norm .*, for which pipeline.name=pipedream_2bw would have to emp",
    ),
    "2bw, zero1": (
        2,
        {"data_parallel": {"name": "zero1"}},
        {"name": "pipedream_2bw"},
        "data_parallel=zero1 keeps one version of the weights.*use data_parallel=dense, or pipel",
    ),
    "unknown block": (
        2,
        {},
        {"stages": ("layers.0", "layers.99")},
        "no block is named layers.99; the model's are layers.0, layers.1",
    ),
    "blocks out of order": (2, {}, {"stages": ("layers.3", "layers.1")}, "in the model's order"),
    "another number of stages": (
        2,
        {},
        {"stages": ("layers.0", "layers.3", "layers.5")},
        "pipeline.stages names 3 stages, but pipeline.name=one_f_one_b on 2 ranks has 2",
    ),
    "accumulation": (
        2,
        {"accumulation": 3},
        {},
        "accumulation=3 has no effect with mesh.pipeline=2.*accumulation=1 pipeline.microb.*=3",
    ),
    "periodic": (
        2,
        {"data_parallel": {"name": "periodic", "period": 2}},
        {},
        "data_parallel=periodic is not built for mesh.pipeline=2; use dense, zero1 or zero2",
    ),
    "daso": (2, {"data_parallel": {"name": "daso"}}, {}, "data_parallel=daso is not built for"),
    "no axis": (1, {}, {"recompute": True}, "no effect with mesh.pipeline=1: leave it out"),
    "another's key": (2, {}, {"chunks": 3}, "pipeline.chunks=3 has no effect with pipeline.name=o"),
    "no file": (2, {}, {"name": "file"}, "needs a CSV: set pipeline.file"),
    "a file that is none": (2, {}, {"name": "file", "file": "nowhere.csv"}, "nowhere.csv can't be"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_it_is_told_in_words(case: str) -> None:
    ranks, changes, choices, words = CASES[case]
    told = refusal(on_mesh(settings(**changes), 1, ranks, **choices), ranks)
    assert re.search(words, told), told


PLAN = write_csv(make("one_f_one_b", Request(2, 3)))  # rank 1: 1F0,1B0,1F1,1B1,1F2,1B2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1B1,", "", "1B1 is missing on rank 1"),
        ("1F1,", "", "1F1 is missing on rank 1"),
        ("1B1", "1B1,1B1", "1B1 is there twice, the second time on rank 1"),
        ("1F1", "1G1", "x.csv, row 2 (rank 1): '1G1' is no action"),
        ("1F0,1B0", "1B0,1F0", "rank 0 at 0B0, rank 1 at 1B0 wait for each other"),
        ("1B1", "1I1", "1W1 is missing on rank 1"),
        ("0F2", "0F9", "0F2 is missing on rank 0"),
    ],
    ids=["no B", "no F", "twice", "no action", "in a circle", "no W", "beyond"],
)
def test_a_file_with_a_fault_is_refused_with_the_action(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    assert old in PLAN
    file = tmp_path / "x.csv"
    file.write_text(PLAN.replace(old, new, 1))
    config = on_mesh(settings(), 1, 2, name="file", microbatches=3, file=str(file))
    assert words in refusal(config, 2)


def test_ranks_that_wait_for_each_other_are_named_with_their_actions(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("0F0,0B0,0F1,0B1\n1F1,1F0,1B0,1B1\n")
    config = on_mesh(settings(), 1, 2, name="file", microbatches=2, file=str(file))
    told = refusal(config, 2)
    assert "dead-locks: rank 0 at 0B0, rank 1 at 1F1 wait for each other" in told


def test_a_file_for_other_ranks_or_micro_batches_says_which_it_is_for(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text(PLAN)
    for ranks, microbatches, words in (
        (3, 3, "for 2 ranks, but mesh.pipeline=3; use mesh.pipeline=2"),
        (2, 4, "for 3 micro-batches, not 4; use 3"),
    ):
        config = on_mesh(
            settings(), 1, ranks, name="file", microbatches=microbatches, file=str(file)
        )
        assert words in refusal(config, ranks)


@pytest.mark.parametrize(
    "changes",
    [{"data_parallel": {"name": "zero1"}}, {"sparse": {"allreduce": "allgather"}}],
    ids=["zero1", "sparse"],
)
def test_a_shared_weight_needs_an_exchange_that_sums_it(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tied_skip", ModelMember(tied_skip, ("model.hidden",)))
    config = settings(model=ModelConfig("tied_skip", hidden=(6, 6)), **changes)
    told = refusal(on_mesh(config, 2, 2), 4)
    assert "parts.enter.tied is used by several stages" in told
    assert "use these, or stages that keep its users together" in told


def test_2bw_takes_no_layers_on_several_ranks() -> None:
    config = on_mesh(settings(), 1, 2, name="pipedream_2bw")
    config = dataclasses.replace(config, mesh=MeshConfig(1, 2, 2))
    assert "not built for layers on several ranks, mesh.operator=2; use mesh.op" in refusal(
        config, 4
    )


@pytest.mark.parametrize("key", ["microbatches", "chunks", "pipes"])
def test_counts_are_at_least_one(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}=0 must be at least 1"):
        on_mesh(settings(), 1, 2, **{key: 0})


def test_a_rank_without_a_stage_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "hole.csv"
    file.write_text("0F0,0B0\n\n1F0,1B0\n")
    config = on_mesh(settings(), 1, 3, name="file", file=str(file), microbatches=1)
    assert "rank 1 holds no stage" in refusal(config, 3)
