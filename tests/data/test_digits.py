import torch
from sklearn.datasets import load_digits

from lightning_fold.data import DigitsDataModule


def test_the_three_parts_are_scikit_learns_digits_in_0_to_1():
    splits = DigitsDataModule().splits
    assert [len(part) for part in splits] == [1257, 180, 360]
    images = torch.cat([part.__getitems__(range(len(part)))[0] for part in splits])
    assert images.shape == (1797, 1, 8, 8)
    original = torch.from_numpy(load_digits(return_X_y=True)[0]) / 16
    torch.testing.assert_close(images.flatten(1).double().sort(0).values, original.sort(0).values)


def test_every_part_has_every_class_in_proportion():
    shares = [part.targets.bincount(minlength=10) / len(part) for part in DigitsDataModule().splits]
    for share in shares[1:]:
        torch.testing.assert_close(share, shares[0], atol=0.01, rtol=0)


def test_split_depends_on_the_seed_alone():
    same, again, other = (DigitsDataModule(seed=seed).splits.test.images for seed in (1, 1, 2))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
