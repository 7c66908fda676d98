"""Paradigms: one of each, everywhere; and whose paradigm a network is of."""

from __future__ import annotations

import pickle

import pytest
import torch

from search_spaces import InputError
from supernet.distillation import Distillation, DistillConfig, Teacher
from supernet.paradigms import BOTTOM_UP, PARADIGMS, TOP_DOWN, Paradigm, paradigm_of
from supernet.pose.skeleton import COCO17
from supernet.registry import NETWORKS, SUPERNETS, build_network
from tests.supernet.tiny import people, space


@pytest.mark.parametrize("paradigm", PARADIGMS.values(), ids=list(PARADIGMS))
def test_a_paradigm_stays_the_one_of_its_name_in_another_process(paradigm: Paradigm) -> None:
    assert pickle.loads(pickle.dumps(paradigm)) is paradigm


@pytest.mark.parametrize("family", NETWORKS)
def test_plain_and_elastic_networks_are_of_one_paradigm(family: str) -> None:
    assert paradigm_of(NETWORKS[family]) is paradigm_of(SUPERNETS[family])
    assert paradigm_of(NETWORKS[family]) is (BOTTOM_UP if family.startswith("litepose") else TOP_DOWN)


def test_an_unknown_paradigm_is_refused() -> None:
    class Sideways(torch.nn.Module):
        paradigm = "sideways"

    with pytest.raises(InputError, match="unknown paradigm 'sideways'"):
        paradigm_of(Sideways())


def test_a_teacher_of_the_other_paradigm_is_refused() -> None:
    """Its maps mean something else: it looks at whole pictures."""
    teacher = Teacher(build_network(space().smallest(), 17), COCO17, COCO17)
    with pytest.raises(InputError, match="the teacher is a bottom-up network"):
        Distillation(DistillConfig(source="teacher", teacher="x"), teacher, TOP_DOWN)  # type: ignore[arg-type]


@pytest.mark.parametrize("paradigm", PARADIGMS.values(), ids=list(PARADIGMS))
def test_an_example_is_what_a_batch_is_made_of(paradigm: Paradigm) -> None:
    data = people(6)
    examples = paradigm.examples(data)
    count = sum(len(data.joints(i)) for i in range(len(data))) if paradigm is TOP_DOWN else len(data)
    assert len(examples) == count
    batch = paradigm.gather(examples, 1 << 20)([0, 1], 64, None, 0, 0).draw()
    width = 48 if paradigm is TOP_DOWN else 64
    assert tuple(batch.images.shape) == (2, 3, 64, width)
