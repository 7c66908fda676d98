"""Checkpoints: what is damaged is noticed, what is of another space is refused choice by choice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from search_spaces import InputError, RunError
from supernet.state import TrainingState, load_weights, read_tensors, space_differences, write_tensors
from supernet.training import Trainer
from tests.supernet import tiny

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(3),
    "none": torch.zeros(0, 4),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("written") / "x.safetensors"
    write_tensors(path, TENSORS, {"step": 3})
    return path.read_bytes()


def test_every_flipped_bit_is_noticed(written: bytes, tmp_path: Path) -> None:
    """All of them: the length and names of the header, what it says, its padding, and the weights."""
    path, missed = tmp_path / "flipped.safetensors", []
    for bit in range(8 * len(written)):
        flipped = bytearray(written)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            read_tensors(path)
            missed.append(bit)
        except InputError as error:
            assert "\n" not in str(error)
    assert missed == []


def test_the_checksum_has_no_rival(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must not have an entry 'sha256'"):
        write_tensors(tmp_path / "x.safetensors", TENSORS, {"sha256": "mine"})
    with pytest.raises(InputError, match="plain JSON"):
        write_tensors(tmp_path / "x.safetensors", TENSORS, {"path": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_checksum_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"litepose_nas": "{}"})
    with pytest.raises(InputError, match=r"x\.safetensors' has no checksum"):
        read_tensors(tmp_path / "x.safetensors")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"step": 3})
    tensors, meta = read_tensors(path)
    assert meta == {"step": 3}
    assert all(torch.equal(tensors[n], t) and tensors[n].dtype == t.dtype for n, t in TENSORS.items())


def test_a_flipped_bit_of_a_weight_in_the_newest_checkpoint(tmp_path: Path) -> None:
    tiny.trainer(tmp_path, epochs=2, checkpoint_seconds=1e-6).run()
    last = tmp_path / "checkpoints" / "last.safetensors"
    content = bytearray(last.read_bytes())
    content[-5] ^= 1
    last.write_bytes(content)
    trainer = tiny.trainer(tmp_path, epochs=2)
    step = trainer.resume()
    assert trainer.notice.endswith(f"going on from the one before it, of step {step}")
    assert "last.safetensors' is damaged: its content is not what its checksum says" in trainer.notice


def test_checkpoints_from_before_newer_settings(tmp_path: Path) -> None:
    tiny.trainer(tmp_path, epochs=1).run()
    last = tmp_path / "checkpoints" / "last.safetensors"
    tensors, meta = read_tensors(last)
    del meta["space"], meta["identity"]["precision"]
    write_tensors(last, tensors, meta)
    assert tiny.trainer(tmp_path, epochs=1).resume() == 3
    with pytest.raises(RunError, match="precision: checkpoint fp32, now bf16"):
        tiny.trainer(tmp_path, epochs=1, precision="bf16").resume()


def test_the_former_checkpoint_stays_until_the_new_one_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, former = tmp_path / "last.safetensors", tmp_path / "previous.safetensors"
    write_tensors(path, TENSORS, {"step": 1}, former)
    assert not former.exists()

    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("supernet.state.save_file", full)
        with pytest.raises(RunError, match="No space left"):
            write_tensors(path, TENSORS, {"step": 2}, former)
    assert read_tensors(path)[1] == {"step": 1} and not former.exists()
    write_tensors(path, TENSORS, {"step": 2}, former)
    assert [read_tensors(each)[1]["step"] for each in (path, former)] == [2, 1]
    assert load_file(path).keys() == TENSORS.keys()


def test_another_space_is_told_choice_by_choice(tmp_path: Path) -> None:
    tiny.trainer(tmp_path, epochs=1).run()
    changes = {"multipliers": [1], "resolutions": [64]}
    other = Trainer(tiny.supernet(**changes), tiny.people(), tiny.config(epochs=1), seed=0, folder=tmp_path)
    with pytest.raises(RunError) as told:
        other.resume()
    message = str(told.value)
    assert "space.resolution: 64, 96 there, 64 here" in message
    assert "space.stage3.width: 16, 24 there, 24 here" in message
    assert "stage0.kernel" not in message and "{" not in message and "\n" not in message
    with pytest.raises(RunError, match=r"another space .*stage3.width: 16, 24 there, 24 here"):
        load_weights(
            tmp_path / "checkpoints" / "best.safetensors", tiny.supernet(**changes), tiny.space(**changes)
        )


def test_spaces_of_the_same_choices_do_not_differ() -> None:
    assert space_differences(tiny.space(), tiny.space()) == []


def test_a_state_travels_as_bytes(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, epochs=1, ema=0.9)
    trainer.run()
    state = trainer._state()
    found = TrainingState.from_bytes(state.to_bytes())
    assert (found.step, found.identity, found.space) == (3, state.identity, state.space)
    assert found.tensors.keys() == state.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in state.tensors.items())
