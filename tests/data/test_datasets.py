import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from lightning_fold.data.datasets import EpochSampler, SeededSamples, TensorImages, crop_and_flip


@pytest.fixture
def images():
    return torch.randint(256, (40, 3, 6, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def dataset(images, **arguments):
    return TensorImages(images, torch.arange(len(images)), mean=[10.0, 20.0, 30.0], std=[2.0, 4.0, 8.0], **arguments)


def test_normalisation_equals_torchvision(images):
    batch, targets = dataset(images).__getitems__([3, 1])
    expected = v2.functional.normalize(images[[3, 1]].float(), [10.0, 20.0, 30.0], [2.0, 4.0, 8.0])
    torch.testing.assert_close(batch, expected)
    assert targets.tolist() == [3, 1]


def test_crop_and_flip_equals_torchvision_image_by_image(images):
    generator = torch.Generator().manual_seed(1)
    offsets = torch.randint(5, (40, 2), generator=generator)
    flips = torch.rand(40, generator=generator) < 0.5
    for image, (top, left), flip, result in zip(
        images, offsets, flips, crop_and_flip(images, offsets, flips, 2), strict=True
    ):
        expected = v2.functional.crop(v2.functional.pad(image, [2, 2, 2, 2]), int(top), int(left), 6, 5)
        expected = v2.functional.horizontal_flip(expected) if flip else expected
        assert torch.equal(result, expected)


def test_augmentation_depends_on_seed_epoch_and_index_alone(images):
    one, other = (dataset(images, crop_padding=2, flip=True, seed=5) for _ in range(2))
    other.set_epoch(3)
    other.__getitems__(range(40))
    one.set_epoch(7)
    other.set_epoch(7)
    torch.manual_seed(9)
    together = one.__getitems__(range(40))[0]
    apart = torch.stack([other[index][0] for index in range(40)])
    assert torch.equal(together, apart)
    one.set_epoch(8)
    assert not torch.equal(one.__getitems__(range(40))[0], apart)
    reseeded = dataset(images, crop_padding=2, flip=True, seed=6)
    reseeded.set_epoch(7)
    assert not torch.equal(reseeded.__getitems__(range(40))[0], apart)


def test_augmentation_reaches_worker_processes(images):
    augmented = dataset(images, crop_padding=2, flip=True)
    sampler = EpochSampler(augmented, 1, 0, seed=1)
    loaders = [DataLoader(augmented, 8, sampler=sampler, num_workers=workers, collate_fn=tuple) for workers in (0, 1)]
    sampler.set_epoch(4)
    here, there = ([inputs for inputs, _ in loader] for loader in loaders)
    assert torch.equal(torch.cat(here), torch.cat(there))


def test_seeded_samples_repeat_and_leave_the_global_generator_alone(images, monkeypatch):
    samples = SeededSamples(list(zip(images, range(40), strict=True)), v2.RandomResizedCrop(4), seed=2)
    samples.set_epoch(1)
    before = torch.get_rng_state()
    first = samples[7][0]
    assert torch.equal(torch.get_rng_state(), before)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "manual_seed", lambda seed: pytest.fail("seeds GPUs, too"))
        assert torch.equal(samples[7][0], first)
    torch.manual_seed(123)
    assert torch.equal(samples[7][0], first)
    samples.set_epoch(2)
    assert not torch.equal(samples[7][0], first)


def test_sampler_shares_the_samples_out_and_changes_with_the_epoch(images):
    shares = [EpochSampler(dataset(images), 2, rank, seed=3) for rank in range(2)]
    orders = []
    for epoch in (0, 1):
        for share in shares:
            share.set_epoch(epoch)
        orders.append([list(share) for share in shares])
        assert sorted(orders[-1][0] + orders[-1][1]) == list(range(40))
    assert orders[0] != orders[1]
