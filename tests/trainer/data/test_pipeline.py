"""Batches are pure functions of (seed, epoch, batch index), and are what a plain reference makes of them."""

import json
import random
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from peakpoint.base.errors import UserError
from peakpoint.trainer.data.images import stratified_split
from peakpoint.trainer.data.pipeline import DataModule, generator_for
from peakpoint.trainer.data.settings import Data
from tests.conftest import one_line
from tests.skips import NO_CUDA
from tests.trainer.data.data_cases import config

torch.set_num_threads(1)
CPU = torch.device("cpu")


@pytest.fixture
def cfg(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 120), ("test", 31)):
        images = generator.integers(0, 256, (count, 7, 9, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(count) % 5)
    return config("npz", tmp_path, val_fraction=0.2, crop_padding=2, flip=True)


def make(cfg: Data, seed: int = 3, channels_last: bool = True, batch_size: int = 16) -> DataModule:
    return DataModule(
        cfg, seed=seed, batch_size=batch_size, eval_batch_size=10, device=CPU, channels_last=channels_last
    )


def same(first, second) -> bool:
    pairs = list(zip(first, second, strict=True))
    return bool(pairs) and all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def stored(cfg: Data, split: str = "train"):
    with np.load(f"{cfg.root}/{split}.npz") as archive:
        return archive["images"], archive["labels"]


# The split


@pytest.mark.parametrize(
    ("counts", "fraction", "expected"),
    [
        ([100, 100], 0.1, [10, 10]),
        ([50, 30, 20], 0.1, [5, 3, 2]),
        ([15, 15, 15], 0.1, [2, 1, 1]),  # round(4.5) = 4: remainders are equal, so the first class takes it
        ([100, 2, 1], 0.1, [9, 1, 0]),  # one of two; a class of one is kept whole
        ([3, 3, 3], 0.01, [1, 1, 1]),  # at least one each, although the fraction asks for none
        ([2, 2], 0.9, [1, 1]),  # never a whole class
        ([10, 0, 10], 0.5, [5, 0, 5]),  # a class without samples
    ],
)
def test_split_sizes_are_those_of_the_largest_remainder(counts, fraction, expected):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    kept, held = stratified_split(labels, fraction, torch.Generator().manual_seed(0))
    assert torch.bincount(labels[held], minlength=len(counts)).tolist() == expected
    assert torch.cat([kept, held]).sort().values.tolist() == list(range(len(labels)))


def test_split_is_fixed_by_the_seed_and_changes_with_it(cfg):
    first, again, other = make(cfg, seed=1), make(cfg, seed=1), make(cfg, seed=2)
    assert torch.equal(first._val, again._val)
    assert not torch.equal(first._val, other._val)
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint["split_sha256"] != other.fingerprint["split_sha256"]
    assert first.fingerprint["train_sha256"] == other.fingerprint["train_sha256"]


def test_fingerprint_is_plain_and_follows_the_images(cfg):
    before = make(cfg).fingerprint
    assert json.loads(json.dumps(before)) == before
    assert (before["train_size"], before["val_size"]) == (96, 24)
    images, labels = stored(cfg)
    images[7, 0, 0, 0] ^= 1
    np.savez(f"{cfg.root}/train.npz", images=images, labels=labels)
    changed = make(cfg).fingerprint["train_sha256"]
    assert changed != before["train_sha256"]
    np.savez(f"{cfg.root}/train.npz", images=images, labels=(labels + 1) % 5)
    assert make(cfg).fingerprint["train_sha256"] not in (changed, before["train_sha256"])


# Order


def test_epochs_differ_but_each_is_a_pure_function_of_seed_and_epoch(cfg):
    data = make(cfg)
    first = list(data.train_batches(1))
    assert not same(first, list(data.train_batches(2)))
    torch.manual_seed(12345)
    torch.rand(7)
    list(data.val_batches())
    assert same(first, list(data.train_batches(1)))
    assert same(first, list(make(cfg).train_batches(1)))
    assert not same(first, list(make(cfg, seed=4).train_batches(1)))


def test_an_epoch_uses_each_training_image_once_and_no_other(cfg):
    data = make(replace(cfg, crop_padding=0, flip=False))
    seen = torch.cat([images for images, _ in data.train_batches(1)])
    train = data._preparation.plain(data._store.images[data._train])
    assert data.steps_per_epoch == 6
    assert sorted(map(bytes, seen.contiguous().numpy())) == sorted(map(bytes, train.contiguous().numpy()))


@pytest.mark.parametrize("start", [0, 1, 5, 6])
def test_starting_at_a_batch_gives_exactly_the_batches_from_there(cfg, start):
    data = make(replace(cfg, cutout=3))
    whole = list(data.train_batches(4))
    rest = list(make(replace(cfg, cutout=3)).train_batches(4, start))
    assert len(rest) == 6 - start
    assert start == 6 or same(whole[start:], rest)


def test_two_iterators_side_by_side_do_not_disturb_each_other(cfg):
    data = make(cfg)
    alone = list(data.train_batches(1)), list(data.train_batches(2))
    both = list(zip(data.train_batches(1), data.train_batches(2), strict=True))
    assert same(alone[0], [pair[0] for pair in both])
    assert same(alone[1], [pair[1] for pair in both])


def test_global_generators_are_left_alone(cfg):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    data = make(replace(cfg, cutout=3))
    list(data.train_batches(1))
    list(data.test_batches())
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()


def test_generators_of_different_keys_differ_and_are_the_same_in_every_process():
    draws = [torch.randint(1 << 40, (1,), generator=generator_for("epoch", 0, e)).item() for e in (0, 1)]
    assert draws[0] != draws[1]
    assert generator_for("epoch", 0, 1).initial_seed() == 0x3E5DE943723F6595


# Pixels


def reference(images: np.ndarray, cfg: Data, choices: np.ndarray, data: DataModule) -> np.ndarray:
    """One image after the other, in plain NumPy: mirror, pad with black, crop, normalise, cut."""
    batch, pad = [], cfg.crop_padding
    for image, (top, left, mirrored, row, column) in zip(images, choices.T, strict=True):
        height, width, _ = image.shape
        image = image[:, ::-1] if mirrored else image
        image = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))[top : top + height, left : left + width]
        pixels = (image / 255 - np.array(data.mean)) / np.array(data.std)
        if cfg.cutout:
            rows = slice(max(row - cfg.cutout // 2, 0), max(row - cfg.cutout // 2 + cfg.cutout, 0))
            columns = slice(max(column - cfg.cutout // 2, 0), max(column - cfg.cutout // 2 + cfg.cutout, 0))
            pixels[rows, columns] = 0
        batch.append(pixels.transpose(2, 0, 1))
    return np.stack(batch)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("padding", "flip", "cutout"),
    [(2, True, 0), (2, False, 0), (0, True, 0), (0, False, 0), (1, True, 3), (0, False, 4), (9, True, 7)],
)
def test_batches_equal_the_plain_reference(cfg, padding, flip, cutout, channels_last):
    cfg = replace(cfg, crop_padding=padding, flip=flip, cutout=cutout)
    data = make(cfg, channels_last=channels_last)
    images, labels = stored(cfg)
    drawn = data._preparation.draw(data._train, generator_for("epoch", 3, 1)).numpy()
    for step, (batch, batch_labels) in enumerate(data.train_batches(1)):
        at = slice(16 * step, 16 * step + 16)
        expected = reference(images[drawn[0, at]], cfg, drawn[1:, at], data)
        np.testing.assert_allclose(batch.numpy(), expected, atol=1e-5)
        assert (batch_labels.numpy() == labels[drawn[0, at]]).all()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.is_contiguous(memory_format=layout)
        assert batch.dtype == torch.float32
        assert batch_labels.dtype == torch.int64


def test_every_crop_and_both_mirrorings_occur_equally_often(cfg):
    data = make(replace(cfg, crop_padding=1))
    drawn = torch.cat(
        [data._preparation.draw(data._train, generator_for("epoch", 3, e))[1:4] for e in range(100)], dim=1
    )
    code = drawn[0] * 6 + drawn[1] * 2 + drawn[2]
    share = torch.bincount(code, minlength=18) / code.numel()
    assert share.shape == (18,)
    assert share.sub(1 / 18).abs().max() < 0.01


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_label_noise_changes_its_share_of_the_training_labels_and_no_other(cfg, share):
    clean, noisy, again = make(cfg), make(cfg), make(cfg)
    noisy.add_label_noise(share)
    again.add_label_noise(share)
    labels = noisy._store.labels
    changed = labels != clean._store.labels
    assert int(changed.sum()) == round(share * len(noisy._train))
    assert set(changed.nonzero().flatten().tolist()) <= set(noisy._train.tolist())
    assert set(labels.tolist()) == set(range(5))
    assert torch.equal(again._store.labels, labels)
    assert same(noisy.val_batches(), clean.val_batches())
    assert same(noisy.test_batches(), clean.test_batches())


def test_statistics_are_those_of_the_training_part_alone(cfg):
    data = make(cfg)
    images, _ = stored(cfg)
    part = images[data._train.numpy()] / 255
    np.testing.assert_allclose(data.mean, part.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.std, part.std((0, 1, 2)), rtol=1e-9)
    images[data._val.numpy()] = 0
    np.savez(f"{cfg.root}/train.npz", images=images, labels=stored(cfg)[1])
    assert make(cfg).mean == data.mean


def test_constant_images_stay_finite(cfg, tmp_path):
    np.savez(tmp_path / "train.npz", images=np.full((40, 4, 4), 9, np.uint8), labels=np.arange(40) % 2)
    data = make(replace(cfg, crop_padding=0))
    assert data.std == (1.0,)
    assert all(images.isfinite().all() for images, _ in data.train_batches(1))


def test_validation_and_test_are_whole_in_order_and_unchanged(cfg):
    data = make(replace(cfg, cutout=3))
    for batches, split, index in (
        (data.val_batches, "train", data._val.numpy()),
        (data.test_batches, "test", np.arange(31)),
    ):
        images, labels = stored(cfg, split)
        got = list(batches())
        assert [len(batch) for batch, _ in got] == [10] * (len(index) // 10) + [len(index) % 10]
        expected = (images[index] / 255 - np.array(data.mean)) / np.array(data.std)
        np.testing.assert_allclose(torch.cat([b for b, _ in got]).permute(0, 2, 3, 1), expected, atol=1e-5)
        assert (torch.cat([y for _, y in got]).numpy() == labels[index]).all()
        assert same(got, list(batches()))


def test_the_test_set_is_read_only_when_asked_for(cfg, tmp_path):
    (tmp_path / "test.npz").rename(tmp_path / "hidden.npz")
    data = make(cfg)
    list(data.train_batches(1))
    assert data.test_fingerprint is None
    with pytest.raises(UserError, match=r"test\.npz is missing"):
        data.test_batches()
    (tmp_path / "hidden.npz").rename(tmp_path / "test.npz")
    data.test_batches()
    assert data.test_fingerprint is not None
    assert data.test_fingerprint["test_size"] == 31


@pytest.mark.parametrize("size", [4, 12])
def test_image_size_resizes_the_batch(cfg, size):
    plain, resized = make(cfg), make(replace(cfg, image_size=size))
    assert resized.image_shape == (3, size, size)
    for (before, _), (after, _) in zip(plain.train_batches(1), resized.train_batches(1), strict=True):
        expected = F.interpolate(before, (size, size), mode="bilinear", antialias=size == 4)
        torch.testing.assert_close(after, expected)
        assert after.is_contiguous(memory_format=torch.channels_last)


def test_grey_images_have_one_channel(cfg, tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(40) % 2)
    data = make(cfg)
    assert data.image_shape == (1, 8, 8)
    assert len(data.mean) == len(data.std) == 1
    assert next(data.train_batches(1))[0].shape == (16, 1, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu_gets_the_batches_of_the_cpu_and_never_waits(cfg, resident):
    cfg, cuda = replace(cfg, cutout=3, image_size=12), torch.device("cuda")
    data = DataModule(cfg, seed=3, batch_size=16, eval_batch_size=10, device=cuda, channels_last=True)
    if not resident:  # as where the images do not fit
        data._store.images, data._store.labels = data._store.images.cpu(), data._store.labels.cpu()
        data._store.pinned = True
    list(data.train_batches(1))
    batches = data.train_batches(1)
    got = [next(batches)]  # the first batch brings the choices of the epoch to the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        got += list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (images, labels), (expected, expected_labels) in zip(got, make(cfg).train_batches(1), strict=True):
        torch.testing.assert_close(images.cpu(), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(labels.cpu(), expected_labels)


# Refusals


@pytest.mark.parametrize(
    ("change", "batch_size", "message"),
    [
        ({}, 97, r"batch_size=97 is more than the 96 training images"),
        ({"cutout": 8}, 16, r"data\.cutout=8 is more than the 7 pixels"),
    ],
)
def test_what_cannot_work_is_one_clear_line(cfg, change, batch_size, message):
    with one_line(UserError, match=message):
        make(replace(cfg, **change), batch_size=batch_size)


def test_classes_of_one_image_leave_no_validation(cfg, tmp_path):
    np.savez(tmp_path / "train.npz", images=np.zeros((4, 5, 5, 3), np.uint8), labels=np.arange(4))
    with pytest.raises(UserError, match="none is left for validation"):
        make(cfg, batch_size=1)


def test_as_many_images_as_a_batch_are_enough(cfg):
    assert len(list(islice(make(cfg, batch_size=96).train_batches(1), 2))) == 1


# The digest of the batches


@pytest.mark.parametrize("start", [0, 2])
def test_the_digest_of_the_batches_does_not_depend_on_where_an_epoch_is_resumed(cfg, start):
    whole, resumed = make(cfg), make(cfg)
    list(whole.train_batches(4))
    list(resumed.train_batches(4, start))
    assert whole.seen() == resumed.seen()


def test_the_digest_of_the_batches_depends_on_their_number_their_epoch_and_the_seed(cfg):
    found = set()
    for seed, epoch, count in [(3, 1, 2), (3, 1, 3), (3, 2, 2), (4, 1, 2)]:
        data = make(cfg, seed)
        assert len(list(islice(data.train_batches(epoch), count))) == count
        found.add(data.seen())
    assert len(found) == 4
